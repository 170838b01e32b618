// @ts-check
// Keys. Single letters count only outside fields, so that nobody's words start anything.
//
// KEYS is the one definition: the list that "?" shows, what buttons say of their key, and what a key does are read from
// it. A key presses the button that has its action (`by`), in the row, slot or line that has the focus, or else on the
// screen; so it can do nothing that the button would not do.
import { signal, useLayoutEffect, useRef } from "./lib.js";
import { go, heeded, route } from "./route.js";
import { undo } from "./undo.js";
import { attempt } from "./parts.js";

/** @typedef {Record<string, (digit: number) => void>} Work */

/** True while the list of keys is shown. */
export const listed = signal(false);

/**
 * By where they hold: what the list calls it, and each action's key and words. Keys that an element hears itself, such
 * as arrows on a border, have a star before them.
 * @type {Record<string, {named: string, keys: Record<string, [string, string]>}>}
 */
export const KEYS = {
  all: { named: "Everywhere", keys: {
    list: ["?", "this list"], screens: ["*g", "then s Sets, m Make, y Story, t Train, c Compare, l Gallery, q Queue"], open: ["o", "open a picture that iclora made"],
    pause: [".", "pause the queue, or go on"], undo: ["*Ctrl+z", "undo"], colours: ["b", "light or dark colours"], close: ["Escape", "close, go up, put a message away"],
  } },
  make: { named: "Make", keys: {
    panel: ["1-9", "go to a panel"], words: ["Enter", "its words"], make: ["Ctrl+Enter", "make it"], first: ["Ctrl+Shift+Enter", "make it before all that waits"],
    again: ["r", "make this panel again"], keep: ["p", "keep this panel, or not"], others: ["a", "make all others again"], use: ["u", "use this panel as given"],
    tell: ["y", "send this panel to the story"], tellAll: ["Y", "send the set to the story"], versions: ["c", "compare this panel with its other versions"], compare: ["C", "compare the set"],
    choose: ["v", "choose a picture for this panel"], request: ["O", "open what this given picture was made of"], paste: ["*Ctrl+v", "give this panel the picture that was copied"], away: ["Delete", "take the given picture away"],
    slots: ["0", "back to the slots"], next: ["j", "the set made before this one"], before: ["k", "the set made after this one"],
    way: ["w", "words by panel, or as one text"], idea: ["i", "write from an idea"], example: ["e", "take the example"], seeds: ["n", "draw new seeds"],
    stop: ["q", "cancel what is made"], retry: ["t", "try again what failed"],
  } },
  sets: { named: "Sets", keys: {
    next: ["j", "next"], before: ["k", "previous"], search: ["/", "search"], all: ["1", "all sets"], look: ["2", "those that need a look"], wordless: ["3", "those without words"],
    caption: ["c", "caption those without words"], train: ["t", "train on it"], folder: ["v", "choose a folder of sets"], zip: ["z", "choose a zip"], draw: ["d", "draw 40 storyboards"],
  } },
  one: { named: "A set of a dataset", keys: {
    next: ["j", "next"], before: ["k", "previous"], words: ["0-9", "words of a panel, of all"], caption: ["c", "caption this set again"], stop: ["q", "cancel the captioner"],
    earlier: ["*Shift+ArrowLeft", "this panel earlier"], later: ["*Shift+ArrowRight", "this panel later"], choose: ["v", "another picture for this panel"], out: ["Delete", "leave this panel out"],
    leave: ["Shift+Delete", "leave this set out"], borders: ["b", "move borders, or close them"], cut: ["Ctrl+Enter", "cut at these borders"], was: ["u", "borders as they were"], border: ["*arrows", "move a border; with Shift by a pixel"], mine: ["m", "keep my words"], theirs: ["d", "take the words on the disk"],
  } },
  story: { named: "Story", keys: {
    next: ["j", "the image after"], before: ["k", "the image before"], words: ["Enter", "its words"], up: ["Alt+ArrowUp", "this image earlier"], down: ["Alt+ArrowDown", "this image later"],
    again: ["r", "make this image again"], pin: ["p", "pin this image, or not"], out: ["Delete", "remove this image"], choose: ["v", "choose a picture for this image"], empty: ["x", "take its picture away"],
    add: ["a", "add an image"], make: ["Ctrl+Enter", "make what is missing, or go on"], stop: ["q", "stop"], example: ["e", "take a story of five"],
  } },
  train: { named: "Train", keys: { next: ["j", "next run"], before: ["k", "previous run"], start: ["Ctrl+Enter", "start training"] } },
  run: { named: "A run", keys: {
    stop: ["x", "stop after this step"], now: ["X", "stop now"], save: ["s", "save now"], preview: ["p", "preview now"], resume: ["r", "go on, or try again"],
    make: ["m", "open its adapter in Make"], compare: ["c", "compare it with the base"], cancel: ["q", "cancel it while it waits"], next: ["j", "previews of the next step"], before: ["k", "previews of the step before"],
  } },
  compare: { named: "Compare", keys: {
    next: ["j", "next"], before: ["k", "previous"], start: ["Ctrl+Enter", "compare"], example: ["e", "take the example"], stop: ["q", "stop"], resume: ["r", "go on"], unmark: ["u", "unmark all"], marked: ["m", "the marked sets"],
  } },
  pair: { named: "Two pictures", keys: { blink: [" ", "the other of the two"], beside: ["h", "side by side"], slide: ["l", "a slider between them"] } },
  gallery: { named: "Gallery", keys: {
    next: ["j", "next"], before: ["k", "previous"], enter: ["*Enter", "open"], search: ["/", "search"], star: ["s", "star, or not"], mark: ["x", "mark to compare, or not"], out: ["Delete", "move to the trash"], restore: ["u", "bring back from the trash"],
    starred: ["S", "only starred ones, or all"], trash: ["T", "the trash, or the gallery"], compare: ["c", "compare those that are marked"], zip: ["z", "zip of those that are marked"],
  } },
  set: { named: "A made set", keys: {
    next: ["j", "next"], before: ["k", "previous"], star: ["s", "star, or not"], out: ["Delete", "move to the trash"], restore: ["u", "bring back from the trash"],
    again: ["r", "make again"], change: ["m", "change and make"], compare: ["c", "compare"], tell: ["y", "send to the story"], zip: ["z", "zip"], command: ["t", "copy as command"], curl: ["T", "copy as curl"],
  } },
  queue: { named: "Queue", keys: {
    next: ["j", "next job"], before: ["k", "previous job"], see: ["Enter", "see what it made"], up: ["Alt+ArrowUp", "this job earlier"], down: ["Alt+ArrowDown", "this job later"], cancel: ["Delete", "cancel this job"], retry: ["r", "try this job again"],
  } },
};

const SIGNS = /** @type {Record<string, string>} */ ({ " ": "Space", Escape: "Esc", Delete: "Del", ArrowUp: "↑", ArrowDown: "↓", ArrowLeft: "←", ArrowRight: "→", "0-9": "0 – 9", "1-9": "1 – 9" });
/** A key as people read it. @param {string} key */
export const spelled = (key) => key.replace(/^\*/, "").split(/\+(?=.)/).map((part) => SIGNS[part] ?? (part.length === 1 && part !== part.toLowerCase() ? `Shift ${part.toLowerCase()}` : part)).join(" ");

/**
 * What makes a button the one that a key presses: spread it into the button.
 * @param {string} where @param {string} action @param {string} [more] said before the key
 */
export function by(where, action, more) {
  const [key, text] = KEYS[where].keys[action];
  const said = more ?? text.charAt(0).toUpperCase() + text.slice(1);
  return { "data-does": `${where} ${action}`, title: `${said} (${spelled(key)})` };
}

const SCREENS = /** @type {Record<string, string>} */ ({
  s: "sets", m: "make", y: "story", t: "train", c: "compare", l: "gallery", q: "queue",
});

/** @typedef {{where: string, address: string, work: () => Work}} Scope */
/** @type {Scope[]} */
const scopes = [];
let prefix = 0;
/** A key that was pressed before the screen was there which it is meant for. */
let held = { name: "", address: "", at: 0 };

/**
 * Have keys hold while something is shown.
 * @param {string} where of KEYS
 * @param {Work} [work] actions that are no buttons, or that need more than a press
 */
export function useKeys(where, work = {}) {
  const now = useRef(work);
  now.current = work;
  // The address as it was drawn: a screen that is still there after a change of address hears no key.
  const { screen, id, part } = route.value;
  const address = where === "all" ? "" : `${screen}/${id}/${part}`;
  useLayoutEffect(() => {
    const scope = { where, address, work: () => now.current };
    scopes.push(scope);
    const waits = held.name && held.address === address && Date.now() - held.at < 1500;
    // When the whole screen is there.
    if (waits) setTimeout(() => waits && held.name && act(held.name, held.address));
    return () => void scopes.splice(scopes.indexOf(scope), 1);
  }, [address]);
}

/** Whether keys of a place hold at the moment. @param {string} where */
export const holds = (where) => scopes.some((scope) => scope.where === where);

const addressNow = () => `${route.value.screen}/${route.value.id}/${route.value.part}`;

/** Press the button that does something; false if there is none, or it cannot be pressed. @param {string} does @param {Element | null} [within] */
export function press(does, within) {
  const here = within ?? document.activeElement?.closest("[data-acts]");
  const all = /** @type {HTMLElement[]} */ ([...document.querySelectorAll(`[data-does="${does}"]`)]).filter((each) => !(/** @type {any} */ (each).disabled));
  // A button of another row is not meant by a key that was pressed on none.
  const found = all.find((each) => here?.contains(each)) ?? all.find((each) => !each.closest("[data-acts]"));
  found?.click();
  return Boolean(found);
}

/** Give the focus to the element before or after the one that has it. @param {string} selector @param {number} by @param {string} [inner] what takes the focus in it */
export function step(selector, by, inner) {
  const all = /** @type {HTMLElement[]} */ ([...document.querySelectorAll(selector)]);
  const at = all.findIndex((each) => each.contains(document.activeElement));
  const to = all[at < 0 ? 0 : at + by];
  (inner ? /** @type {HTMLElement | null} */ (to?.querySelector(inner)) : to)?.focus();
}

/** @param {string} key @param {string} name */
const meant = (key, name) => key === name || (key === "1-9" && /^[1-9]$/.test(name)) || (key === "0-9" && /^[0-9]$/.test(name));

/** Do what a key means here; false if it means nothing. @param {string} name @param {string} address */
function act(name, address) {
  const order = [...scopes].reverse().sort((a, b) => Number(a.where === "all") - Number(b.where === "all"));
  for (const scope of order) {
    if (scope.address && scope.address !== address) continue;
    for (const [action, [key]] of Object.entries(KEYS[scope.where].keys)) {
      if (!meant(key, name)) continue;
      held = { name: "", address: "", at: 0 };
      const own = scope.work()[action];
      if (own) own(Number(name));
      else if (!press(`${scope.where} ${action}`)) continue;
      return true;
    }
  }
  return false;
}

const inField = (/** @type {EventTarget | null} */ target) =>
  target instanceof HTMLElement && (target.isContentEditable || (/^(INPUT|TEXTAREA|SELECT)$/.test(target.tagName) && !["checkbox", "file"].includes(/** @type {any} */ (target).type)));

addEventListener("keydown", (event) => {
  if (event.defaultPrevented || event.isComposing) return;
  const command = event.ctrlKey || event.metaKey;
  const name = `${command ? "Ctrl+" : ""}${event.altKey ? "Alt+" : ""}${event.shiftKey && event.key.length > 1 ? "Shift+" : ""}${event.key}`;
  const typing = inField(event.target);
  if (typing && !name.startsWith("Ctrl+") && name !== "Escape") return;
  // Letters with Alt are other letters.
  if (event.altKey && event.key.length === 1) return;
  // What has the focus is pressed by it.
  if ((name === " " || name === "Enter") && event.target instanceof HTMLElement && event.target.closest("button, a, summary, input")) return;
  if (name === "Ctrl+z" && !typing) {
    event.preventDefault();
    attempt(undo);
    return;
  }
  if (!command && Date.now() - prefix < 1500 && SCREENS[event.key]) {
    event.preventDefault();
    prefix = 0;
    go(SCREENS[event.key]);
    return;
  }
  prefix = name === "g" ? Date.now() : 0;
  if (document.querySelector("dialog[open]")) {
    if (name === "?") {
      event.preventDefault();
      listed.value = false;
    }
    return;
  }
  const address = addressNow();
  if (act(name, address)) event.preventDefault();
  // The screen of a new address may not be there yet: it takes the key up.
  else if (Date.now() - heeded() < 1500) held = { name, address, at: Date.now() };
});
