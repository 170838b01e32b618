// @ts-check
// Keys. Single letters count only outside fields, so that nobody's words start anything.
import { signal } from "./lib.js";
import { go } from "./route.js";
import { undo } from "./undo.js";
import { attempt } from "./parts.js";

/** @typedef {Record<string, (event: KeyboardEvent) => void>} Keys */

/** True while the list of keys is shown. */
export const listed = signal(false);

/** What the list says, by where it holds. */
export const KEYS = [
  ["Everywhere", [
    ["?", "this list"], ["g s", "Sets"], ["g m", "Make"], ["g y", "Story"], ["g t", "Train"], ["g c", "Compare"], ["g l", "Gallery"], ["g q", "Queue"],
    [".", "pause the queue, or go on"], ["Ctrl Z", "undo"], ["Esc", "close"],
  ]],
  ["Sets", [
    ["j k", "next, previous"], ["1 – 9, 0", "words of a panel, of all"], ["Shift ← →", "this panel earlier, later"],
    ["Del", "leave this panel out"], ["← → ↑ ↓", "move a border"], ["c", "caption this set again"], ["/", "search"],
  ]],
  ["Make", [
    ["1 – 9", "go to a panel"], ["Enter", "its words"], ["Ctrl Enter", "queue it"],
    ["Ctrl Shift Enter", "queue it first"], ["r", "make this panel again"], ["p", "keep this panel"],
    ["Ctrl V", "give a panel the picture that was copied"],
  ]],
  ["Story", [["Alt ↑ ↓", "move this image"], ["↑ ↓", "the image before, the next"], ["Ctrl Enter", "make what is missing"]]],
  ["Train, Compare", [["Ctrl Enter", "start"], ["Space", "the other of two pictures"], ["j k", "next, previous"]]],
  ["Gallery", [
    ["j k", "next, previous"], ["Enter", "open"], ["s", "star"], ["x", "mark to compare"], ["Del", "move to the trash"], ["/", "search"],
  ]],
];

const SCREENS = /** @type {Record<string, string>} */ ({
  s: "sets", m: "make", y: "story", t: "train", c: "compare", l: "gallery", q: "queue",
});

/** @type {Keys[]} */
const scopes = [];
let prefix = 0;

/** Add a screen's keys; the function that is returned takes them away. @param {Keys} keys */
export function bind(keys) {
  scopes.push(keys);
  return () => void scopes.splice(scopes.indexOf(keys), 1);
}

const inField = (/** @type {EventTarget | null} */ target) =>
  target instanceof HTMLElement && (target.isContentEditable || /^(INPUT|TEXTAREA|SELECT)$/.test(target.tagName));

addEventListener("keydown", (event) => {
  if (event.defaultPrevented || event.isComposing) return;
  const held = event.ctrlKey || event.metaKey;
  const name = `${held ? "Ctrl+" : ""}${event.shiftKey && event.key.length > 1 ? "Shift+" : ""}${event.key}`;
  const typing = inField(event.target);
  if (typing && !name.startsWith("Ctrl+") && name !== "Escape") return;
  if (event.altKey) return;
  // What has the focus is pressed by it.
  if (name === " " && event.target instanceof HTMLElement && event.target.closest("button, a, summary")) return;
  if (name === "Ctrl+z" && !typing) {
    event.preventDefault();
    attempt(undo);
    return;
  }
  if (!held && Date.now() - prefix < 1500 && SCREENS[event.key]) {
    event.preventDefault();
    prefix = 0;
    go(SCREENS[event.key]);
    return;
  }
  prefix = name === "g" ? Date.now() : 0;
  if (name === "?") {
    listed.value = !listed.value;
    event.preventDefault();
    return;
  }
  if (document.querySelector("dialog[open]")) return;
  for (const keys of [...scopes].reverse()) {
    if (keys[name]) {
      event.preventDefault();
      keys[name](event);
      return;
    }
  }
});
