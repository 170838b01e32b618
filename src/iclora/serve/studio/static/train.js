// @ts-check
// Train: a new run, made of the settings' own schema, and the runs that there are.
import { get, post, Problem, url } from "./api.js";
import { html, signal, useEffect } from "./lib.js";
import { Field, read, schemaIn, written } from "./forms.js";
import { by, step, useKeys } from "./keys.js";
import { kept } from "./kept.js";
import { listen } from "./live.js";
import { Icon, Picture, plain, Progress, trouble, Wrong } from "./parts.js";
import { go, refine, route } from "./route.js";
import { OneRun } from "./run.js";
import { forms, jobs, know, needForm, recipes } from "./state.js";
import { lasting } from "./words.js";

/**
 * @typedef {{id: string, state: string, step: number, steps: number, loss: number | null, job: string | null,
 *   settings: Record<string, any>, data: string, recipe: string | null, previews: string[], saved: string[], asked: string[]}} Run
 */

const store = kept("train", () => ({ name: "", data: "", recipe: "", values: /** @type {Record<string, string>} */ ({}) }));
const draft = store.now;
const ready = signal(false);
const datasets = signal(/** @type {{id: string, kind: string}[] | null} */ (null));
const runs = signal(/** @type {Run[] | null} */ (null));
/** What a run on the chosen dataset usually takes. */
const usual = signal(/** @type {{values: Record<string, any>, recipe: string | null, sets: number, problems: string[]} | null} */ (null));
const plan = signal(/** @type {any} */ (null));
const counting = signal(false);
const wrong = signal(/** @type {Record<string, Problem>} */ ({}));

const FIRST = ["steps", "rank", "conditional", "held_out"];
const OWN = new Set([...FIRST, "data", "name", "recipe"]);
/** What a plan depends on, as its address takes it. */
const COUNTED = ["batch", "rank", "steps", "targets", "resolutions", "text", "compile", "recipe", "micro_batch", "micro_tokens",
  "gradient_checkpointing", "recompute", "conditional", "isolate_given", "preview_every", "preview_resolution"];

let lists = 0;

async function load() {
  const mine = ++lists;
  try {
    const [found, all] = await Promise.all([get("datasets"), get("runs"), needForm("train"), ready.value || store.restore()]);
    if (mine === lists) {
      datasets.value = found.datasets;
      runs.value = all.runs;
    }
    ready.value = true;
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    if (error.status !== 0) trouble.value = error;
  }
}

export function Train() {
  const { id } = route.value;
  useEffect(() => {
    load();
    /** @type {number | undefined} */
    let timer;
    return listen((type) => {
      if (!["job", "run", "reset", "preview"].includes(type)) return;
      clearTimeout(timer);
      timer = setTimeout(load, 300);
    });
  }, []);
  useKeys("train", { next: () => step(".runs .row", 1, ".what a"), before: () => step(".runs .row", -1, ".what a") });
  if (id) return html`<${OneRun} id=${id} key=${id} />`;
  if (!ready.value || !forms.value.train || datasets.value === null) return html`<p class="quiet train" role="status">Looking</p>`;
  return html`<div class="train">
    <section class="new" aria-label="A new run"><h1>Train</h1>
      ${datasets.value.length ? html`<${NewRun} />` : html`<${NoDataset} />`}</section>
    <${Runs} />
  </div>`;
}

function NoDataset() {
  return html`<div class="nothing"><h2>No sets to train on yet</h2>
    <p class="quiet">A dataset is a folder of image sets, each with a caption: 20 to 100 sets teach an adapter.</p>
    <a class="button main" href="#/sets">To the sets</a></div>`;
}

/** A name that no run has. */
function freeName() {
  const base = draft.value.data.replace(/^.*~/, "").replace(/\.zip$/i, "").replace(/[^A-Za-z0-9._-]+/g, "-").slice(0, 50) || "run";
  const taken = new Set([...(runs.value ?? []).map((run) => run.id.replace(/^.*~/, "")), ...jobs.value.filter((job) => job.kind === "train").map((job) => job.input.name)]);
  let number = 1;
  while (taken.has(`${base}-${number}`)) number += 1;
  return `${base}-${number}`;
}

/** What the run is told; null if a field is wrong. @returns {Record<string, any> | null} */
function told() {
  const { input, wrong: bad } = read(draft.value.values, "train");
  if (Object.keys(bad).length) {
    wrong.value = Object.fromEntries(Object.entries(bad).map(([name, problem]) => [name, new Problem(422, { problem })]));
    return null;
  }
  const now = draft.value;
  return { ...usual.value?.values, ...input, data: now.data, ...(now.recipe ? { recipe: now.recipe } : {}) };
}

async function start() {
  const input = told();
  if (!input) return;
  wrong.value = {};
  const name = draft.value.name.trim() || freeName();
  try {
    know(await post("jobs", { kind: "train", input: { ...input, name } }, { "Idempotency-Key": crypto.randomUUID() }));
    store.change({ name: "" });
    go(`train/runs~${name}`);
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    const where = error.code === "Busy" ? "name" : (error.setting ?? "");
    wrong.value = { [where]: error };
    requestAnimationFrame(() => /** @type {HTMLElement | null} */ (document.querySelector('.new [aria-invalid="true"]'))?.focus());
  }
}

let looks = 0;

/** Ask what the dataset is, and what a run on it usually takes. */
async function look() {
  const mine = ++looks;
  const { data, recipe } = draft.value;
  if (!data) return;
  try {
    const found = await get(`usual/train?data=${encodeURIComponent(data)}${recipe ? `&recipe=${encodeURIComponent(recipe)}` : ""}`);
    // Another dataset may be chosen since: its run must not take the numbers of this one.
    if (mine !== looks) return;
    usual.value = found;
    const { data: _, recipe: __, ...others } = wrong.value;
    wrong.value = others;
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    if (mine !== looks) return;
    usual.value = null;
    if (error.status !== 0) wrong.value = { ...wrong.value, [error.setting === "recipe" ? "recipe" : "data"]: error };
  }
}

let turn = 0;

/** Have the run counted: whether it fits, and how long it takes. */
async function count() {
  const input = usual.value && told();
  if (!input) return;
  const mine = ++turn;
  const asked = new URLSearchParams({ vram: String(input.vram ?? "auto"), data: input.data });
  for (const name of COUNTED) for (const each of [input[name] ?? []].flat()) asked.append(name, String(each));
  counting.value = true;
  let later = false;
  try {
    const found = await get(`plan?${asked}`);
    if (mine === turn) plan.value = { ...found, steps: input.steps ?? schemaIn("train", "steps")?.default };
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    later = error.status === 429 && mine === turn;
    if (later) setTimeout(() => mine === turn && count(), 3000);
    else if (mine === turn) plan.value = { error };
  } finally {
    if (mine === turn && !later) counting.value = false;
  }
}

function NewRun() {
  const now = draft.value;
  const all = Object.keys(forms.value.train.properties);
  const more = all.filter((name) => !OWN.has(name));
  const there = datasets.value ?? [];
  useEffect(() => {
    // From Sets comes which dataset is meant.
    const meant = route.value.query.get("data");
    if (meant && there.some((each) => each.id === meant)) {
      store.change({ data: meant, recipe: "" });
      refine({});
    } else if (!there.some((each) => each.id === now.data) && there.length) store.change({ data: there[0].id, recipe: "" });
  }, [there.length, now.data]);
  useEffect(() => void look(), [now.data, now.recipe]);
  useEffect(() => {
    const timer = setTimeout(count, 1200);
    return () => clearTimeout(timer);
  }, [usual.value, JSON.stringify(now.values)]);
  const refused = plan.value?.error;
  const errorOf = (/** @type {string} */ name) => wrong.value[name] ?? (refused?.setting === name ? refused : undefined);
  const touched = more.some((name) => now.values[name] || errorOf(name));
  const rest = Object.entries(wrong.value).filter(([name]) => !all.includes(name));
  const clear = (/** @type {string} */ name) => {
    const { [name]: _, ...others } = wrong.value;
    wrong.value = others;
  };
  const field = (/** @type {string} */ name) => html`<${Field} key=${name} form="train" name=${name} value=${now.values[name] ?? ""} error=${errorOf(name)}
    empty=${usual.value && name in usual.value.values ? written(usual.value.values[name]) : undefined}
    onValue=${(/** @type {string} */ text) => {
      clear(name);
      store.change({ values: { ...now.values, [name]: text } });
    }} />`;
  return html`<form class="fields" onSubmit=${(/** @type {Event} */ event) => { event.preventDefault(); start(); }}>
    <div class="pair">
      <div class="field"><label for="train-data">Dataset</label>
        <select id="train-data" value=${now.data} aria-invalid=${Boolean(wrong.value.data)} onChange=${(/** @type {any} */ event) => store.change({ data: event.currentTarget.value, recipe: "" })}>
          ${there.map((each) => html`<option value=${each.id}>${each.id.replace(/^data~/, "")}</option>`)}</select>
        <${Wrong} error=${wrong.value.data} />
        ${usual.value && html`<p class="help">${usual.value.sets} sets of ${usual.value.recipe}${usual.value.sets < 20 ? "; 20 to 100 teach more" : ""}</p>`}
        ${(usual.value?.problems ?? []).slice(0, 3).map((text) => html`<p class="help">${plain(text)}</p>`)}</div>
      <div class="field"><label for="train-recipe">Recipe</label>
        <select id="train-recipe" value=${now.recipe} aria-invalid=${Boolean(wrong.value.recipe)} onChange=${(/** @type {any} */ event) => store.change({ recipe: event.currentTarget.value })}>
          <option value="">the dataset's own</option>${recipes.value.map((each) => html`<option>${each.name}</option>`)}</select>
        <${Wrong} error=${wrong.value.recipe} /></div>
      ${FIRST.map(field)}
    </div>
    <details open=${touched}><summary>More settings</summary><div class="pair">${more.map(field)}</div></details>
    <${Counted} />
    <div class="start">
      ${rest.map(([name, error]) => html`<${Wrong} key=${name} error=${error} />`)}
      <div class="field"><label for="train-name">Name</label>
        <input id="train-name" type="text" autocomplete="off" spellcheck="false" maxlength="64" placeholder=${freeName()} value=${now.name}
          aria-invalid=${Boolean(wrong.value.name)} onInput=${(/** @type {any} */ event) => { clear("name"); store.change({ name: event.currentTarget.value }); }} />
        <${Wrong} error=${wrong.value.name} /></div>
      <div class="buttons"><button class="main" ...${by("train", "start")} disabled=${!now.data}>Start training</button>
        <span class="quiet">It goes on when this page, or the server, is closed.</span></div>
    </div>
  </form>`;
}

const gb = (/** @type {number} */ bytes) => `${(bytes / 1e9).toFixed(bytes < 1e10 ? 1 : 0)} GB`;

/** The plan as a card: whether it fits, how much it takes, how long. */
function Counted() {
  const found = plan.value;
  if (!found && !counting.value) return null;
  return html`<section class=${`card-plan ${counting.value ? "stale" : ""}`} aria-label="Plan" aria-live="polite">
    ${!found && html`<p class="quiet">Counting whether it fits</p>`}
    ${found?.error && html`<${Wrong} error=${found.error} />`}
    ${found && !found.error && html`
      <dl><div><dt>Memory</dt><dd><b>Fits: ${gb(found.peak)}</b> of ${gb(found.usable)}<meter min="0" max=${found.usable} value=${found.peak} aria-label="memory of the run"></meter></dd></div>
        <div><dt>Time</dt><dd>${found.seconds
          ? html`<b>${span(found.seconds.map((/** @type {number} */ each) => each * found.steps))}</b> for ${found.steps} steps`
          : "known on the card itself"}</dd></div>
        <div><dt>Base</dt><dd>${found.precision === "full" ? "in full precision" : `kept in ${found.precision}`}${found.recomputed ? `, ${found.recomputed} of ${found.blocks} blocks recomputed` : ""}</dd></div></dl>
      <details><summary>${counting.value ? "Counting again" : "How it is counted"}</summary><pre>${found.text}</pre></details>`}
  </section>`;
}

/** A least and a most, in words. @param {number[]} seconds */
function span([low, high]) {
  const [first, last] = [lasting(low), lasting(high)];
  return first === last ? first : `${first} to ${last}`;
}

const SAID = /** @type {Record<string, string>} */ ({ running: "runs", stopped: "stopped", finished: "finished" });

function Runs() {
  const known = new Set((runs.value ?? []).map((run) => run.id));
  // A run that waits has no folder yet.
  const waiting = jobs.value.filter((job) => job.kind === "train" && job.ended === null && job.input.name && !known.has(`runs~${job.input.name}`));
  const all = [...(runs.value ?? [])].sort((a, b) => Number(b.state === "running") - Number(a.state === "running"));
  return html`<section class="runs" aria-label="Runs"><h2>Runs</h2>
    ${!all.length && !waiting.length && html`<p class="quiet">What you train is listed here, and what the command line trains in this folder.</p>`}
    <ul class="rows">${waiting.map((job) => html`<li class="row" key=${job.id}><span class="thumb" aria-hidden="true"></span>
        <div class="what"><p><a href=${`#/train/runs~${job.input.name}`}><b>${job.input.name}</b></a></p><p><${Progress} job=${job} /></p></div></li>`)}
      ${all.map((run) => html`<${Row} key=${run.id} run=${run} />`)}</ul>
  </section>`;
}

/** @param {{run: Run}} props */
function Row({ run }) {
  const picture = run.previews.filter((name) => /^step-\d+-1\.png$/.test(name)).at(-1);
  const job = jobs.value.find((each) => each.id === run.job);
  const now = job?.progress?.stage === "training" ? job.progress.done : run.step;
  return html`<li class="row"><a class="thumb" href=${`#/train/${run.id}`} tabindex="-1" aria-hidden="true">${picture ? html`<${Picture} src=${url(`runs/${run.id}/previews/${picture}`)} alt="" />` : html`<${Icon} name="play" />`}</a>
    <div class="what"><p><a href=${`#/train/${run.id}`}><b>${run.id.replace(/^runs~/, "")}</b></a></p>
      <p class="quiet">${SAID[run.state]} · step ${now} of ${run.steps}${run.loss == null ? "" : ` · loss ${run.loss.toFixed(3)}`}</p></div>
  </li>`;
}
