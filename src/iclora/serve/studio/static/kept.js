// @ts-check
// What is being written on a screen. It is kept in the browser at each change and on the server soon
// after, so neither a reload nor another machine loses it.
import { call, get, place, Problem } from "./api.js";
import { signal } from "./lib.js";
import { trouble } from "./parts.js";
import { done } from "./undo.js";

/**
 * @template T
 * @param {string} name of the screen
 * @param {() => T} empty
 */
export function kept(name, empty) {
  const now = signal(empty());
  const key = `iclora draft ${name} ${place}`;
  let version = 0;
  /** @type {number | undefined} */
  let timer;
  let sending = false;

  /** Send it soon; who writes on without a pause is kept, too. */
  function soon(pause = 600) {
    timer ??= setTimeout(send, pause);
  }

  async function send() {
    timer = undefined;
    // One after the other: a later draft must not be written over by an earlier one.
    if (sending) {
      soon();
      return;
    }
    sending = true;
    try {
      await call("PUT", `drafts/${name}`, { version, values: now.value });
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      // It is in the browser, and goes with the next change or as soon as the server is back.
      if (error.status === 0 || error.status >= 500) soon(3000);
      else trouble.value = error;
    } finally {
      sending = false;
    }
  }

  /** Change what is written; a step that is named can be undone. @param {Partial<T>} values @param {string} [step] */
  function change(values, step) {
    const before = now.value;
    now.value = { ...before, ...values };
    if (step) {
      const back = /** @type {Partial<T>} */ (Object.fromEntries(Object.keys(values).map((each) => [each, /** @type {any} */ (before)[each]])));
      done(step, () => change(back));
    }
    version += 1;
    localStorage.setItem(key, JSON.stringify({ version, values: now.value }));
    soon();
  }

  /** Take up what was left, here or elsewhere. @param {{version: number, values: any}} [told] what the server has, if it has said so */
  async function restore(told) {
    const there = told ?? (await get(`drafts/${name}`));
    // Read last: somebody may have written meanwhile.
    const here = JSON.parse(localStorage.getItem(key) ?? "null");
    const newest = here && here.version >= there.version ? here : there;
    version = newest.version;
    now.value = { ...empty(), ...newest.values };
  }

  return { now, change, restore };
}
