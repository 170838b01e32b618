// @ts-check
// Datasets and their sets, as the server last told them, and what `check` finds at each.
import { call, get, Problem, url } from "./api.js";
import { batch, computed, signal } from "./lib.js";
import { attempt, trouble } from "./parts.js";
import { jobs, offers } from "./state.js";
import { doing, done } from "./undo.js";

/**
 * @typedef {{name: string, prefix: string, markers: string[], example: string, per_row: number[],
 *   width: number, height: number, boxes: number[][]}} Form
 * @typedef {{name: string, images: string[], composite: boolean, caption: string | null, etag: string,
 *   stamp: string}} ImageSet
 * @typedef {{severity: "error" | "warning", text: string, advice: string, caption: boolean}} Finding
 * @typedef {{name: string, tokens: number | null, problems: Finding[]}} Found
 * @typedef {ImageSet & Found & {limit: number, exact: boolean, sizes: number[][], canvases: number, stretch: number[],
 *   canvas: {width: number, height: number, boxes: number[][]} | null}} OneImageSet
 * @typedef {{id: string, form: Form, problems: string[], sets: ImageSet[]}} Dataset
 */

export const datasets = signal(/** @type {{id: string, kind: string}[] | null} */ (null));
export const dataset = signal(/** @type {Dataset | null} */ (null));
/** Why the dataset of the address cannot be opened. */
export const refused = signal(/** @type {Problem | null} */ (null));
/** What `check` finds, by set. */
export const findings = signal(/** @type {Record<string, Found>} */ ({}));
/** How many sets `check` has looked at; null while it does not look. */
export const looked = signal(/** @type {number | null} */ (null));
export const captioners = computed(() => offers.value.captioners);

const escaped = encodeURIComponent;
/** @param {string} id @param {string} [name] */
export const at = (id, name) => `datasets/${escaped(id)}${name === undefined ? "" : `/sets/${escaped(name)}`}`;
/** The address on the page. @param {string} id @param {string} [name] */
export const place = (id, name) => `sets/${escaped(id)}${name === undefined ? "" : `/${escaped(name)}`}`;

/**
 * A picture of a set. @param {string} id @param {{name: string, stamp: string}} one
 * @param {"trained" | "panel" | "file"} view @param {number} side @param {number} [n]
 */
export const picture = (id, one, view, side, n = 1) =>
  url(`${at(id, one.name)}/picture.webp?view=${view}&n=${n}&side=${side}&v=${one.stamp}`);

/** A dataset's id as people read it. @param {string} id */
export const called = (id) => id.replace(/^data~/, "");

/** Nothing is shown of a server that is away: a line says so already. @param {unknown} error */
function quiet(error) {
  if (!(error instanceof Problem)) throw error;
  if (error.status !== 0) trouble.value = error;
}

let lists = 0;

export async function loadDatasets() {
  const mine = ++lists;
  try {
    const found = await get("datasets");
    if (mine === lists) datasets.value = found.datasets;
  } catch (error) {
    quiet(error);
  }
}

let turn = 0;

/** Open a dataset, or look at it again. @param {string} id */
export async function openDataset(id) {
  const mine = ++turn;
  if (dataset.value?.id !== id) {
    batch(() => {
      dataset.value = null;
      findings.value = {};
      refused.value = null;
    });
  }
  try {
    /** @type {ImageSet[]} */
    let sets = [];
    let cursor = 0;
    let page;
    do {
      page = await get(`${at(id)}/sets?limit=200&cursor=${cursor}`);
      sets = [...sets, ...page.sets];
      cursor = page.cursor;
    } while (cursor);
    if (mine !== turn) return;
    dataset.value = { id, form: page.form, problems: page.problems, sets };
    refused.value = null;
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    if (mine === turn && error.status !== 0) refused.value = error;
    return;
  }
  // Whoever has changed a set need not wait until every other one is looked at.
  look(id, mine).catch(quiet);
}

/** Have every set looked at, a few at a time. @param {string} id @param {number} mine */
async function look(id, mine) {
  let cursor = 0;
  looked.value = 0;
  do {
    const page = await get(`${at(id)}/check?limit=100&cursor=${cursor}`);
    if (mine !== turn) return;
    cursor = page.cursor;
    const more = Object.fromEntries(page.sets.map((/** @type {Found} */ each) => [each.name, each]));
    batch(() => {
      findings.value = { ...findings.value, ...more };
      looked.value = (looked.value ?? 0) + page.sets.length;
    });
  } while (cursor);
  looked.value = null;
}

/** Say of a set what the server says now. @param {ImageSet} now @param {Found} [found] */
export function know(now, found) {
  const all = dataset.value;
  if (all) dataset.value = { ...all, sets: all.sets.map((each) => (each.name === now.name ? { ...each, ...now } : each)) };
  if (found) findings.value = { ...findings.value, [now.name]: { name: now.name, tokens: found.tokens, problems: found.problems } };
}

/** Whether somebody should look at a set. @param {ImageSet} one */
export const needsLook = (one) => !one.caption || (findings.value[one.name]?.problems.length ?? 0) > 0;

/**
 * Change files of a dataset, with a way back.
 * @param {string} id @param {string} said @param {() => Promise<{edit: string}>} work @param {() => any} after
 */
export const edit = (id, said, work, after) => attempt(() => doing(async () => {
  // One after the other: each is about the files as the one before has left them.
  const before = editing;
  let end = () => {};
  editing = new Promise((resolve) => (end = () => resolve(undefined)));
  await before;
  try {
    return await change(id, said, work, after);
  } finally {
    end();
  }
}));

/** The change that is under way. @type {Promise<void>} */
let editing = Promise.resolve();

/** @type {typeof edit} */
async function change(id, said, work, after) {
  const { edit: number } = await work();
  done(said, async () => {
    await call("POST", `${at(id)}/edits/${number}/undo`);
    await after();
  });
  await after();
  return number;
}

/** The files of a set as the server last told them, to be changed only if they are still so. @param {ImageSet} one */
export const asKnown = (one) => matching(dataset.value?.sets.find((each) => each.name === one.name)?.stamp ?? one.stamp);

export const matching = (/** @type {string} */ tag) => ({ "If-Match": tag.startsWith('"') ? tag : `"${tag}"` });

/** Which sets are listed: as the address says it, as people read it, and whether a set is one. */
export const FILTERS = /** @type {[string, string, (one: ImageSet) => boolean][]} */ ([
  ["", "All", () => true],
  ["look", "Needs a look", needsLook],
  ["wordless", "No words", (one) => !one.caption],
]);

/** The sets that the address asks for. @param {Dataset} dataset @param {URLSearchParams} query */
export function shown(dataset, query) {
  const wanted = FILTERS.find(([name]) => name === (query.get("only") ?? "")) ?? FILTERS[0];
  const words = (query.get("q") ?? "").toLowerCase().split(/\s+/).filter(Boolean);
  return dataset.sets.filter((one) => {
    const text = `${one.name} ${one.caption ?? ""}`.toLowerCase();
    return wanted[2](one) && words.every((word) => text.includes(word));
  });
}

export const captioning = (/** @type {string} */ id) =>
  jobs.value.find((job) => job.kind === "caption" && job.input.data === id && job.ended === null);
