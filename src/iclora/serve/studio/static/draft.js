// @ts-check
// What is being written on Make.
import { Problem } from "./api.js";
import { kept } from "./kept.js";
import { signal } from "./lib.js";
import { recipeOf } from "./state.js";
import { join, split } from "./words.js";

/**
 * @typedef {{sha: string, width: number, height: number}} Given
 * @typedef {{recipe: string, adapter: string, way: "panels" | "text", overview: string, panels: string[],
 *   text: string, given: Record<string, Given>, values: Record<string, string>, shown: string,
 *   keep: number[], follow: string, made: string[], idea: string, asked: string, seeds: Record<string, number>}} Draft
 */

/** @returns {Draft} */
const empty = () => ({
  recipe: "", adapter: "", way: "panels", overview: "", panels: [], text: "", given: {}, values: {},
  shown: "", keep: [], follow: "", made: [], idea: "", asked: "", seeds: {},
});

const store = kept("make", empty);
export const draft = store.now;
export const { change, restore } = store;
/** Problems by the setting that they concern; "" for all others. */
export const wrong = signal(/** @type {Record<string, Problem>} */ ({}));

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
