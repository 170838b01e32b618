// @ts-check
// From the draft to a job, and back to the set that it made.
import { get, post, Problem } from "./api.js";
import { computed, signal } from "./lib.js";
import { change, draft, prompt, wrong } from "./draft.js";
import { read } from "./forms.js";
import { jobs, know, recipeOf } from "./state.js";
import { done } from "./undo.js";
import { split } from "./words.js";

/** @typedef {{width: number, height: number, boxes: number[][]}} Layout */

/** What the server says of the draft before it is made. */
export const preview = signal(/** @type {any} */ (null));
/** Requests of sets that are shown, by id. */
const requests = signal(/** @type {Record<string, any>} */ ({}));

export const shownRequest = computed(() => requests.value[draft.value.shown] ?? null);
/** The job that Make follows: its set is shown once it is there, unless another was chosen meanwhile. */
export const followed = computed(() => jobs.value.find((job) => job.id === draft.value.follow) ?? null);

/**
 * Panels whose pictures were given; those that were made before and kept have latents.
 * @param {any} request
 * @returns {number[]}
 */
export const givenIn = (request) => Object.entries(request?.given ?? {}).filter(([, each]) => !each.latents).map(([panel]) => Number(panel));

/** Panels that `keep` and given pictures leave to be made again. @param {any} request @param {number[]} keep @returns {number[]} */
export function left(request, keep) {
  const stays = new Set([...keep, ...givenIn(request)]);
  return request.layout.boxes.map((/** @type {any} */ _, /** @type {number} */ n) => n + 1).filter((/** @type {number} */ n) => !stays.has(n));
}

/** Have a set's request at hand. @param {string} id */
export async function know_request(id) {
  if (!id || requests.value[id]) return;
  try {
    const found = await get(`sets/${id}/request.json`);
    requests.value = { ...requests.value, [id]: found };
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    if (error.status === 404 && draft.value.shown === id) change({ shown: "", keep: [], made: draft.value.made.filter((each) => each !== id) });
  }
}

let looks = 0;

/** Ask what the draft comes to. */
export async function look() {
  const mine = ++looks;
  const now = draft.value;
  if (!now.recipe) return;
  const { input } = read(now.values);
  const body = {
    recipe: now.recipe, adapter: now.adapter || null, prompt: prompt(now), size: input.size ?? null,
    given: Object.fromEntries(Object.entries(now.given).map(([panel, each]) => [panel, each.sha])),
  };
  try {
    const found = await post("preview", body);
    // An earlier draft may be answered later.
    if (mine === looks) preview.value = found;
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    if (mine !== looks) return;
    // A wrong size or a picture that is gone: the job would say the same, at the same field.
    preview.value = null;
    if (error.status === 422 || error.status === 404) wrong.value = { ...wrong.value, [error.setting ?? ""]: error };
  }
}

/** The seeds of a picture that was opened, for panels that are made. @param {import("./draft.js").Draft} now */
function seedsOf(now) {
  const own = Object.entries(now.seeds).filter(([panel]) => !now.given[panel]);
  return own.length && !now.values.seed && !(Number(now.values.count) > 1) ? { panel_seeds: Object.fromEntries(own) } : {};
}

/** What the job is told. */
function wish() {
  const now = draft.value;
  const { input, wrong: bad } = read(now.values);
  /** @type {Record<string, Problem>} */
  const found = {};
  for (const [name, text] of Object.entries(bad)) found[name] = new Problem(422, { problem: text, setting: name });
  const text = prompt(now);
  if (!text) found.prompt = new Problem(422, { problem: "there are no words yet", advice: "Write what the set shows, or take the example.", setting: "prompt" });
  if (Object.keys(found).length) {
    wrong.value = found;
    return null;
  }
  const given = Object.entries(now.given);
  return {
    kind: given.length ? "complete" : "generate",
    input: {
      ...input, ...seedsOf(now), prompt: [text], recipe: now.recipe, ...(now.adapter ? { adapter: [now.adapter] } : {}),
      ...(given.length ? { given: Object.fromEntries(given.map(([panel, each]) => [panel, each.sha])) } : {}),
    },
  };
}

/** Settings of the schema that have no field of their own name on the page. */
const PLACES = /** @type {Record<string, string>} */ ({ idea: "prompt", prompts: "prompt" });

/** Show why the server refused, at the field that it concerns. @param {Problem} error */
function refuse(error) {
  const where = error.setting ?? (error.code === "CaptionError" ? "prompt" : "");
  wrong.value = { [PLACES[where] ?? where]: error };
}

/** Queue a job. @param {{kind: string, input: any}} body @param {boolean} [first] */
async function queueJob(body, first = false) {
  wrong.value = {};
  try {
    const job = await post("jobs", { ...body, ...(first ? { priority: 10 } : {}) }, { "Idempotency-Key": crypto.randomUUID() });
    know(job);
    change({ follow: job.id });
    return job;
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    refuse(error);
    focusWrong();
    return null;
  }
}

/** Bring the reader to the first field that is wrong. */
function focusWrong() {
  requestAnimationFrame(() => {
    const at = document.querySelector('.make [aria-invalid="true"]');
    if (at instanceof HTMLElement) at.focus();
  });
}

/** Make what the draft says. @param {boolean} [first] before everything that waits */
export async function make(first = false) {
  const body = wish();
  if (!body) {
    focusWrong();
    return;
  }
  await queueJob(body, first);
}

/** Make panels of the shown set again; the others stay. @param {number[]} panels */
export async function reroll(panels) {
  const set = draft.value.shown;
  if (!set || !panels.length) return;
  await queueJob({ kind: "reroll", input: { set, panel: panels } });
}

/** Make all panels again that are not kept. */
export function makeOthers() {
  const request = shownRequest.value;
  if (!request) return;
  reroll(left(request, draft.value.keep));
}

/** Show another set, or the slots again. @param {string} id */
export function show(id) {
  change({ shown: id, follow: "" });
}

/** Take up what the followed job has come to; called whenever jobs change. */
export function follow() {
  const job = followed.value;
  if (!job || job.ended === null) return;
  if (job.status === "succeeded") {
    const sets = job.result?.sets ?? [];
    const before = draft.value.shown;
    // What is kept stays kept while the rest is made again and again.
    const keep = job.kind === "reroll" ? draft.value.keep : [];
    change({ follow: "", shown: sets[0] ?? before, keep, made: [...new Set([...sets, ...draft.value.made])].slice(0, 24) });
    reveal();
    if (job.kind === "reroll" && before) done("Made again", () => change({ shown: before }));
  } else if (job.status === "failed" && job.error) {
    change({ follow: "" });
    refuse(new Problem(422, { ...job.error, setting: job.error.setting }));
    last.value = job.id;
  } else change({ follow: "" });
}

/** Bring what was made into view where the page is one column, unless somebody writes. */
function reveal() {
  requestAnimationFrame(() => {
    if (document.activeElement?.matches("input, textarea, select")) return;
    document.querySelector(".make .stage")?.scrollIntoView({ block: "nearest" });
  });
}

/** The job that failed last, to try it again. */
export const last = signal("");

/** The words of a made set by panel, and what it was made with. @param {string} id @param {any} request @param {any} origin */
export function wordsOf(id, request, origin) {
  const { recipe, adapter } = draftOf(id, request, origin ?? {});
  const task = recipeOf(recipe);
  const parts = task && split(task, request.prompt);
  return { overview: parts?.overview ?? "", panels: parts?.panels ?? [], recipe, adapter };
}

/** Fill the draft from a made set. @param {string} id @param {any} request @param {any} origin */
export function draftOf(id, request, origin) {
  const told = origin.input ?? {};
  const recipe = [told.recipe, request.recipe].find((name) => name && recipeOf(name)) ?? draft.value.recipe;
  const usual = recipeOf(recipe);
  const { width, height } = request.layout;
  /** @type {Record<string, string>} */
  const values = { steps: String(request.steps) };
  // Sets of one job have seeds one apart.
  const number = Number(/[0-9]+$/.exec(origin.path ?? "")?.[0] ?? 1) - 1;
  if (origin.kind !== "reroll" && told.seed != null) values.seed = String(told.seed + number);
  if (usual && (usual.width !== width || usual.height !== height) && !Object.keys(request.given ?? {}).length) values.size = `${width}x${height}`;
  if (request.mode !== "sdedit") values.mode = request.mode;
  const given = Object.fromEntries(Object.entries(told.given ?? {}).map(([panel, sha]) => [panel, { sha, width: 0, height: 0 }]));
  return { recipe, values, given, adapter: (told.adapter ?? [])[0] ?? "", shown: id, keep: [], follow: "" };
}
