// @ts-check
// What the page knows of the server, asked for again whenever an event says that it changed.
import { get, post, Problem } from "./api.js";
import { computed, signal } from "./lib.js";
import { listen, start } from "./live.js";
import { attempt, trouble } from "./parts.js";

/**
 * @typedef {{id: string, kind: string, status: string, position: number | null, waits_for: string | null,
 *   ahead: {stage: string, done: number, total: number, eta_s: number | null} | null,
 *   priority: number, attempt: number, created: number, started: number | null, ended: number | null,
 *   progress: {stage: string, done: number, total: number, eta_s: number | null} | null,
 *   input: Record<string, any>, result: {sets?: string[]} | null,
 *   error: {code: string, problem: string, advice: string, setting: string | null} | null}} Job
 * @typedef {{name: string, summary: string, prefix: string, markers: string[], example: string,
 *   width: number, height: number, boxes: number[][]}} Recipe
 * @typedef {{id: string, base: string | null, recipe: string | null, width: number | null, height: number | null}} Adapter
 * @typedef {{id: string, made: number, prompt: string, recipe: string, adapter: string, seed: string,
 *   panels: number, star: boolean, note: string, trashed: boolean}} MadeSet
 */

export const jobs = signal(/** @type {Job[]} */ ([]));
export const queue = signal({ paused: false, waiting: 0, running: 0 });
/** What the server offers beside its base: who writes, what measures. */
export const offers = signal({ captioners: /** @type {string[]} */ ([]), metrics: /** @type {string[]} */ ([]) });
export const machine = signal(/** @type {any} */ (null));
export const recipes = signal(/** @type {Recipe[]} */ ([]));
export const adapters = signal(/** @type {Adapter[]} */ ([]));
/** JSON schemas of what jobs are told, by kind. */
export const forms = signal(/** @type {Record<string, any>} */ ({}));
/** Counts changes of made sets, so that what shows them asks again. */
export const setsChanged = signal(0);
export const loaded = signal(false);
/** Why the server could not be asked at the start. */
export const failed = signal(/** @type {Problem | null} */ (null));

const RUNS = new Set(["running", "cancelling"]);
export const running = computed(() => jobs.value.filter((job) => RUNS.has(job.status)));
/** In the order in which they will be begun. */
export const waiting = computed(() =>
  jobs.value.filter((job) => job.status === "queued").sort((a, b) => (a.position ?? 0) - (b.position ?? 0)),
);
export const ended = computed(() =>
  jobs.value
    .filter((job) => job.ended !== null)
    .sort((a, b) => (b.ended ?? 0) - (a.ended ?? 0)),
);

/** An adapter's id as people read it: a run's is its name. @param {string} id */
export const called = (id) => id.replace(/^runs~/, "");

export const recipeOf = (/** @type {string} */ name) => recipes.value.find((recipe) => recipe.name === name);

/** Take a job's newest state as the server told it. @param {Job} job */
export function know(job) {
  // A list that is on its way may be older than this.
  turn += 1;
  queueSoon();
  jobs.value = [job, ...jobs.value.filter((other) => other.id !== job.id)];
}

/** Pause the queue, or go on. */
export const pause = () => attempt(async () => (queue.value = await post("queue", { paused: !queue.value.paused })));

let turn = 0;

async function loadQueue() {
  const mine = ++turn;
  const [page, live, state] = await Promise.all([get("jobs?limit=200"), get("jobs?status=running"), get("queue")]);
  // Answers may come in another order than they were asked for.
  if (mine === turn) takeQueue(page.jobs, live.jobs, state);
}

/** @param {Job[]} newest @param {Job[]} live those that run, which may be older @param {{paused: boolean, waiting: number, running: number}} state */
function takeQueue(newest, live, state) {
  const there = new Set(newest.map((job) => job.id));
  jobs.value = [...newest, ...live.filter((job) => !there.has(job.id))];
  queue.value = state;
}

async function loadMachine() {
  machine.value = await get("machine");
}

async function loadOffers() {
  const [tasks, files, about] = await Promise.all([get("recipes"), get("adapters"), get("about")]);
  takeOffers(tasks.recipes, files.adapters, about);
}

/** @param {Recipe[]} tasks @param {Adapter[]} files @param {{captioners: string[], metrics: string[]}} about */
function takeOffers(tasks, files, about) {
  offers.value = about;
  recipes.value = tasks;
  adapters.value = files;
}

/** Have the schema of a kind of job at hand. @param {string} kind */
export async function needForm(kind) {
  if (forms.value[kind]) return;
  const form = await get(`forms/${kind}`);
  // Read last: another form may have come meanwhile.
  forms.value = { ...forms.value, [kind]: form };
}

/** A function that runs soon, once for many calls, and keeps quiet while the server is away. */
function soon(/** @type {() => Promise<void>} */ work, /** @type {number} */ pause) {
  /** @type {number | undefined} */
  let timer;
  const run = () => work().catch((error) => {
    if (!(error instanceof Problem)) throw error;
    // A line says already that the server is away.
    if (error.status !== 0) trouble.value = error;
  });
  return () => {
    clearTimeout(timer);
    timer = setTimeout(run, pause);
  };
}

const queueSoon = soon(loadQueue, 80);
const machineSoon = soon(loadMachine, 80);
let asked = 0;
/** While something runs, every few seconds and no more often. */
function machineAgain() {
  if (Date.now() - asked < 4000 || document.visibilityState === "hidden") return;
  asked = Date.now();
  machineSoon();
}
const offersSoon = soon(loadOffers, 200);

let begun = false;

/**
 * Ask for everything, then follow events from there on; until the server answers, again and again.
 * @param {(draft: any) => Promise<void>} first takes up the draft of Make before anything is shown
 */
export async function begin(first) {
  if (!begun) follow();
  begun = true;
  const mine = ++turn;
  try {
    const found = await get("start");
    if (mine === turn) takeQueue(found.jobs, found.running, found.queue);
    else queueSoon();
    machine.value = found.machine;
    takeOffers(found.recipes, found.adapters, found.about);
    forms.value = { ...forms.value, complete: found.form };
    await first(found.draft);
    failed.value = null;
    loaded.value = true;
    start(found.event);
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    failed.value = error;
    setTimeout(begin, 2000, first);
  }
}

/** Ask again for what an event says has changed. */
function follow() {
  listen((type, data) => {
    if (type === "progress") {
      jobs.value = jobs.value.map((job) => (job.id === data.job ? { ...job, progress: data } : job));
      machineAgain();
    }
    if (["job", "queue", "reset"].includes(type)) queueSoon();
    if (["set", "reset"].includes(type)) setsChanged.value += 1;
    if (["job", "set", "reset"].includes(type)) machineSoon();
    // A run that has ended has left an adapter.
    if (type === "reset" || (type === "job" && data.kind === "train")) offersSoon();
  });
  // While the base is loaded there is no event for it.
  setInterval(() => {
    if (machine.value?.waits_for) {
      machineSoon();
      queueSoon();
    } else if (queue.value.running || Date.now() - asked > 30_000) machineAgain();
  }, 2000);
}

/** Seconds that a set takes, by the last jobs of the recipe; null if there was none. */
export function usualSeconds(/** @type {string} */ recipe) {
  const took = ended.value
    .filter((job) => job.status === "succeeded" && job.started && job.input.recipe === recipe)
    .slice(0, 7)
    .map((job) => ((job.ended ?? 0) - (job.started ?? 0)) / Math.max(1, job.result?.sets?.length ?? 1))
    .sort((a, b) => a - b);
  return took.length ? took[took.length >> 1] : null;
}
