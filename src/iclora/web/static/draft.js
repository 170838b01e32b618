// @ts-check
// What is being written on Make. It is kept in the browser at each change and on the server soon
// after, so neither a reload nor another machine loses it.
import { call, get, place, Problem } from "./api.js";
import { signal } from "./lib.js";
import { recipeOf } from "./state.js";
import { done } from "./undo.js";
import { join, split } from "./words.js";

/**
 * @typedef {{sha: string, width: number, height: number}} Given
 * @typedef {{recipe: string, adapter: string, way: "panels" | "text", overview: string, panels: string[],
 *   text: string, given: Record<string, Given>, values: Record<string, string>, shown: string,
 *   keep: number[], follow: string, made: string[]}} Draft
 */

/** @returns {Draft} */
const empty = () => ({
  recipe: "", adapter: "", way: "panels", overview: "", panels: [], text: "", given: {}, values: {},
  shown: "", keep: [], follow: "", made: [],
});

export const draft = signal(empty());
/** Problems by the setting that they concern; "" for all others. */
export const wrong = signal(/** @type {Record<string, Problem>} */ ({}));

const KEPT = `iclora draft make ${place}`;
let version = 0;
/** @type {number | undefined} */
let timer;

/** Change the draft; a step that is named can be undone. @param {Partial<Draft>} values @param {string} [step] */
export function change(values, step) {
  const before = draft.value;
  draft.value = { ...before, ...values };
  if (step) {
    const back = Object.fromEntries(Object.keys(values).map((name) => [name, before[/** @type {keyof Draft} */ (name)]]));
    done(step, () => change(back));
  }
  keep();
}

function keep() {
  version += 1;
  const values = draft.value;
  localStorage.setItem(KEPT, JSON.stringify({ version, values }));
  clearTimeout(timer);
  timer = setTimeout(send, 600);
}

async function send() {
  try {
    await call("PUT", "drafts/make", { version, values: draft.value });
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    // It is in the browser, and goes with the next change or as soon as the server is back.
    if (error.status === 0 || error.status >= 500) timer = setTimeout(send, 3000);
  }
}

/** Take up the draft where it was left, here or elsewhere. */
export async function restore() {
  const there = await get("drafts/make");
  // Read last: somebody may have written meanwhile.
  const here = JSON.parse(localStorage.getItem(KEPT) ?? "null");
  const newest = here && here.version >= there.version ? here : there;
  version = newest.version;
  draft.value = { ...empty(), ...newest.values };
}

/** The words as one text, whichever way they are written. @param {Draft} now */
export function prompt(now) {
  const recipe = recipeOf(now.recipe);
  if (now.way === "text" || !recipe) return now.text.trim();
  return join(recipe, now.overview, now.panels);
}

/** Write by panel, or as one text, with the same words. @param {"panels" | "text"} way @returns {boolean} */
export function write(way) {
  const now = draft.value;
  const recipe = recipeOf(now.recipe);
  if (!recipe || now.way === way) return true;
  if (way === "text") {
    change({ way, text: prompt(now) });
    return true;
  }
  const parts = split(recipe, now.text);
  if (!parts) return false;
  change({ way, ...parts });
  return true;
}

/** Fill in a joint prompt. @param {string} text @param {string} [step] @param {Partial<Draft>} [more] */
export function fill(text, step, more = {}) {
  const recipe = recipeOf(more.recipe ?? draft.value.recipe);
  const parts = recipe && split(recipe, text);
  change(parts ? { way: "panels", ...parts, text, ...more } : { way: "text", text, ...more }, step);
}
