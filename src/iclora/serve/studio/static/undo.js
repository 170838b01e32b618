// @ts-check
// Undo instead of questions: what was done is said, and one key or button takes it back.
import { signal } from "./lib.js";

/** @typedef {{text: string, undo: () => void | Promise<void>}} Step */

/** @type {Step[]} */
const steps = [];
/** What was begun and has no step yet. @type {Set<Promise<any>>} */
const running = new Set();
/** What the bar shows: the last thing done, or that it was taken back. */
export const said = signal(/** @type {{text: string, step: Step | null} | null} */ (null));
/** @type {number | undefined} */
let timer;

function show(/** @type {string} */ text, /** @type {Step | null} */ step, seconds = 12) {
  said.value = { text, step };
  clearTimeout(timer);
  timer = setTimeout(() => (said.value = null), seconds * 1000);
}

/** Say what was done, and how it is taken back. @param {string} text @param {Step["undo"]} undo */
export function done(text, undo) {
  const step = { text, undo };
  steps.push(step);
  if (steps.length > 100) steps.shift();
  show(text, step);
}

/**
 * Do what has a way back. What is done may show before its answer comes, by the stream of events:
 * `undo` waits for it.
 * @template T
 * @param {() => Promise<T>} work
 * @returns {Promise<T>}
 */
export async function doing(work) {
  const mine = work();
  running.add(mine);
  try {
    return await mine;
  } finally {
    running.delete(mine);
  }
}

/** Say something that needs no undo. @param {string} text */
export const note = (text) => show(text, null, 6);

export const hide = () => (said.value = null);

/** Take back this step, or the last one. @param {Step} [chosen] */
export async function undo(chosen) {
  if (!chosen) await Promise.allSettled(running);
  const step = chosen ?? steps.at(-1);
  if (!step) return;
  steps.splice(steps.indexOf(step), 1);
  await step.undo();
  show(`Undone: ${step.text}`, null, 4);
}
