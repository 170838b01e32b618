// @ts-check
// Made sets as the gallery lists them, and what is done to one of them.
import { call, get, post, Problem } from "./api.js";
import { signal } from "./lib.js";
import { attempt, trouble } from "./parts.js";
import { route } from "./route.js";
import { setsChanged } from "./state.js";
import { doing, done } from "./undo.js";

/** @typedef {import("./state.js").MadeSet} MadeSet */

export const found = signal(/** @type {MadeSet[] | null} */ (null));
/** Where the next page begins. */
export const cursor = signal(/** @type {string | null} */ (null));
const PAGE = 60;
/** The filter of the list; null before there is one. */
let asked = /** @type {string | null} */ (null);
let turn = 0;
/** Counts lists that were taken in, each of which says where it goes on. */
let lists = 0;

const address = (/** @type {URLSearchParams} */ query) => {
  const told = new URLSearchParams();
  for (const name of ["q", "recipe", "adapter"]) if (query.get(name)) told.set(name, query.get(name) ?? "");
  if (query.get("star")) told.set("starred", "true");
  if (query.get("trash")) told.set("trashed", "true");
  return told.toString();
};

/** Ask for the first page, or as much as is shown already. */
export async function load() {
  const told = address(route.value.query);
  const mine = ++turn;
  const keep = told === asked ? (found.value?.length ?? 0) : 0;
  try {
    // What is shown of many sets is asked for in large pages.
    let page = await get(`sets?${told}&limit=${keep > PAGE ? 200 : PAGE}`);
    let sets = page.sets;
    while (page.cursor && sets.length < keep) {
      page = await get(`sets?${told}&limit=200&cursor=${page.cursor}`);
      sets = [...sets, ...page.sets];
    }
    if (mine !== turn) return;
    asked = told;
    lists += 1;
    found.value = sets;
    cursor.value = page.cursor;
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    if (error.status !== 0) trouble.value = error;
  }
}

export async function more() {
  if (!cursor.value) return;
  const from = cursor.value;
  const mine = lists;
  cursor.value = null;
  const page = await attempt(() => get(`sets?${asked}&limit=${PAGE}&cursor=${from}`));
  // A list that came meanwhile goes on elsewhere.
  if (mine !== lists) return;
  if (!page) {
    cursor.value = from;
    return;
  }
  found.value = [...(found.value ?? []), ...page.sets];
  cursor.value = page.cursor;
}

/** Say of a set what the server says now. @param {MadeSet} now */
function know(now) {
  found.value = (found.value ?? []).map((each) => (each.id === now.id ? now : each));
  setsChanged.value += 1;
}

/** Give a set a star, or take it away. @param {MadeSet} one */
export const star = (one) => attempt(async () => know(await call("PATCH", `sets/${one.id}`, { star: !one.star })));

/** Move a set to the trash, with a way back. @param {MadeSet} one @param {() => void} [after] */
export const trash = (one, after) => attempt(() => doing(async () => {
  await call("DELETE", `sets/${one.id}`);
  found.value = (found.value ?? []).filter((each) => each.id !== one.id);
  setsChanged.value += 1;
  after?.();
  done("Moved to the trash", async () => {
    await post(`sets/${one.id}/restore`);
    setsChanged.value += 1;
  });
}));

/** Bring a set back. @param {MadeSet} one */
export const restore = (one) => attempt(() => doing(async () => {
  await post(`sets/${one.id}/restore`);
  setsChanged.value += 1;
  done("Brought back from the trash", async () => {
    await call("DELETE", `sets/${one.id}`);
    setsChanged.value += 1;
  });
}));

/** The set before or after one, as the gallery lists them. @param {string} id @param {number} by */
export function beside(id, by) {
  const all = found.value ?? [];
  const at = all.findIndex((each) => each.id === id);
  return at < 0 ? undefined : all[at + by];
}
