// @ts-check
// One run: its losses, its previews by step, what it said; to stop it, to ask it for more, to go on.
import { get, post, Problem, url } from "./api.js";
import { html, signal, useEffect, useState } from "./lib.js";
import { Chart, smoothed } from "./chart.js";
import { change } from "./draft.js";
import { by, useKeys } from "./keys.js";
import { Field, read, schemaIn, written } from "./forms.js";
import { listen } from "./live.js";
import { Pair } from "./pair.js";
import { attempt, Icon, Picture, plain, Progress, trouble, Wrong } from "./parts.js";
import { go } from "./route.js";
import { adapters, jobs, know, machine, recipeOf, recipes } from "./state.js";
import { ago, lasting } from "./words.js";

/** @typedef {import("./train.js").Run} Run @typedef {import("./state.js").Job} Job */

/** What is known of the run that is shown. */
const empty = () => ({
  run: /** @type {Run | null} */ (null), rows: /** @type {{step: number, loss: number, sets: string[]}[]} */ ([]),
  measures: /** @type {{step: number, held_out: number, trained: number}[]} */ ([]), notes: /** @type {string[]} */ ([]), missing: false,
});
const seen = signal(empty());
let turn = 0;

/** Take in what is new of a run. @param {string} id */
async function look(id) {
  const mine = ++turn;
  try {
    const place = `runs/${encodeURIComponent(id)}`;
    const [run, measured, said] = await Promise.all([get(place), get(`${place}/measures`), get(`${place}/notes`)]);
    // A run that goes on from a checkpoint takes its last steps again.
    let rows = (seen.value.rows.at(-1)?.step ?? 0) > run.step ? [] : seen.value.rows;
    for (;;) {
      const page = await get(`${place}/log?after=${rows.at(-1)?.step ?? 0}`);
      rows = [...rows, ...page.rows];
      if (page.rows.length < 5000) break;
    }
    // It may be another run's turn, or an older answer.
    if (mine !== turn) return;
    seen.value = { run, rows, measures: measured.rows, notes: said.notes, missing: false };
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    if (mine !== turn || error.status === 0) return;
    if (error.status === 404) seen.value = { ...seen.value, missing: true };
    else trouble.value = error;
  }
}

/** Ask again soon, at most once a second; what happens during an answer is asked for after it. @param {string} id */
function follower(id) {
  let last = 0;
  let more = false;
  let ended = false;
  /** @type {number | undefined} */
  let timer;
  const soon = () => {
    more = true;
    timer ??= setTimeout(async () => {
      more = false;
      await look(id);
      last = Date.now();
      timer = undefined;
      if (more && !ended) soon();
    }, Math.max(50, 1000 - (Date.now() - last)));
  };
  // Another run may be shown by then.
  const end = () => {
    ended = true;
    clearTimeout(timer);
  };
  return { soon, end };
}

/** @param {{id: string}} props */
export function OneRun({ id }) {
  const name = id.replace(/^runs~/, "");
  const mine = jobs.value.filter((job) => job.kind === "train" && ((job.input.name && `runs~${job.input.name}` === id) || job.input.resume === id));
  const job = mine.sort((a, b) => b.created - a.created)[0];
  const { run, missing } = seen.value;
  useEffect(() => {
    seen.value = empty();
    const { soon, end } = follower(id);
    look(id);
    const stop = listen((type, data) => {
      if (["progress", "preview", "note"].includes(type) && jobs.value.find((each) => each.id === data.job)?.kind !== "train") return;
      soon();
    });
    // The command line's runs send no events.
    const timer = setInterval(() => seen.value.run?.state === "running" && soon(), 3000);
    return () => {
      stop();
      end();
      clearInterval(timer);
      // What is on its way is of a run that is shown no more.
      turn += 1;
    };
  }, [id]);
  useKeys("run");
  useKeys("all", { close: () => { if (trouble.value) trouble.value = null; else go("train"); } });
  const back = html`<a class="button bare" href="#/train"><${Icon} name="back" /> Train</a>`;
  if (!run) {
    if (job) return html`<article class="run"><nav class="steps">${back}</nav><h1>${name}</h1><${Does} id=${id} run=${null} job=${job} /></article>`;
    return missing ? html`<div class="nothing train"><h2>There is no run "${name}"</h2><a class="button" href="#/train">To the runs</a></div>` : html`<p class="quiet train" role="status">Looking</p>`;
  }
  return html`<article class="run">
    <nav class="steps">${back}</nav>
    <div class="head"><h1>${name}</h1><p class="quiet">${run.state === "running" ? "trains" : run.state}, step ${run.step} of ${run.steps}</p></div>
    <${Does} id=${id} run=${run} job=${job} />
    <div class="shown">
      <section aria-label="Losses"><h2>Loss</h2><${Losses} run=${run} /></section>
      <section aria-label="Previews"><h2>Previews</h2><${Previews} id=${id} run=${run} /></section>
    </div>
    <${Log} run=${run} job=${job} />
  </article>`;
}

/** What the run does, and what it can be told. @param {{id: string, run: Run | null, job: Job | undefined}} props */
function Does({ id, run, job }) {
  const place = `runs/${encodeURIComponent(id)}`;
  const live = job && job.ended === null;
  const failed = job?.status === "failed" ? job.error : null;
  const asked = run?.asked ?? [];
  const ask = (/** @type {string} */ what) => attempt(async () => {
    await post(`${place}/ask/${what}`);
    await look(id);
  });
  const stop = (/** @type {boolean} */ now) => attempt(async () => know(await post(`${place}/stop`, { now })));
  const resume = (/** @type {any} */ changes = {}) => attempt(async () => know(await post(`${place}/resume`, changes)));
  const since = run?.saved.at(-1)?.replace(/^step-0*/, "step ") ?? "the start";
  const works = run?.state === "running";
  const saved = adapters.value.find((each) => each.id.startsWith(`${id}@`) && !each.id.endsWith("@best"))?.id;
  const lower = /`lr` ([0-9.e-]+)/.exec(failed?.advice ?? "")?.[1];
  return html`<section class="does" aria-label="What it does">
    ${live && html`<p><${Progress} job=${job} /></p>`}
    ${failed && html`<${Wrong} error=${failed} />`}
    <div class="buttons">
      ${works && live && job.status !== "cancelling" && html`<button type="button" ...${by("run", "stop")} onClick=${() => stop(false)}><${Icon} name="pause" /> Stop after this step</button>`}
      ${works && !live && html`<button type="button" disabled=${asked.includes("stop")} ...${by("run", "stop")} onClick=${() => ask("stop")}><${Icon} name="pause" /> ${asked.includes("stop") ? "Stops after this step" : "Stop after this step"}</button>`}
      ${live && job.status !== "queued" && html`<button type="button" ...${by("run", "now", `Stop now: what was trained since ${since} is lost`)} onClick=${() => stop(true)}>Stop now</button>`}
      ${live && job.status === "cancelling" && html`<span class="quiet">Stops after this step. Now: what was trained since ${since} is lost.</span>`}
      ${live && job.status === "queued" && html`<button type="button" ...${by("run", "cancel")} onClick=${() => attempt(async () => know(await post(`jobs/${job.id}/cancel`)))}>Cancel</button>`}
      ${works && html`
        <button type="button" disabled=${asked.includes("save")} ...${by("run", "save")} onClick=${() => ask("save")}>${asked.includes("save") ? "Saves after this step" : "Save now"}</button>
        <button type="button" disabled=${asked.includes("preview")} ...${by("run", "preview")} onClick=${() => ask("preview")}>${asked.includes("preview") ? "Draws after this step" : "Preview now"}</button>`}
      ${run?.state === "finished" && html`<button type="button" class="main" ...${by("run", "make")} onClick=${() => openInMake(id)}>Open in Make</button>
        <a class="button" ...${by("run", "compare")} href=${`#/compare?adapter=${encodeURIComponent(id)}`}>Compare with the base</a>`}
      ${saved && run?.state !== "finished" && html`<button type="button" ...${by("run", "make")} onClick=${() => openInMake(saved)}>Try step ${saved.split("@")[1]} in Make</button>`}
      ${run?.state === "stopped" && !live && html`<button type="button" class="main" ...${by("run", "resume")} onClick=${() => resume()}><${Icon} name="play" /> Go on</button>`}
      ${failed?.code === "OutOfMemory" && !live && html`<button type="button" class="main" onClick=${() => resume({ micro_batch: 1, micro_tokens: 0, recompute: 10000 })} title="One set at a time, every block recomputed: slower">Go on with less memory</button>`}
      ${lower && !live && html`<button type="button" onClick=${() => resume({ lr: Number(lower) })}>Go on with a learning rate of ${lower}</button>`}
      ${!run && job?.ended != null && html`<button type="button" ...${by("run", "resume")} onClick=${() => attempt(async () => know(await post(`jobs/${job.id}/retry`)))}>Try again</button>`}
    </div>
    ${run && !works && !live && html`<${Further} run=${run} resume=${resume} />`}
  </section>`;
}

const CHANGED = ["steps", "lr", "save_every", "preview_every"];

/** Go on with settings changed. @param {{run: Run, resume: (changes: any) => any}} props */
function Further({ run, resume }) {
  const [values, setValues] = useState(/** @type {Record<string, string>} */ ({}));
  const [bad, setBad] = useState(/** @type {Record<string, string>} */ ({}));
  const begin = (/** @type {Event} */ event) => {
    event.preventDefault();
    const { input, wrong } = read(values, "train");
    if (run.state === "finished" && !(input.steps > run.step)) wrong.steps = `it has ${run.step}: more belong here`;
    setBad(wrong);
    if (!Object.keys(wrong).length) resume(input);
  };
  return html`<details class="further"><summary>${run.state === "finished" ? "Train it further" : "Go on with other settings"}</summary>
    <form onSubmit=${begin}><div class="pair">${CHANGED.map((name) => html`<${Field} key=${name} form="train" name=${name} value=${values[name] ?? ""} empty=${name in run.settings ? written(run.settings[name]) : name === "steps" ? String(run.steps) : undefined}
      error=${bad[name] && new Problem(422, { problem: bad[name] })} onValue=${(/** @type {string} */ text) => setValues({ ...values, [name]: text })} />`)}</div>
      <button class="button">Go on</button></form></details>`;
}

/** Take a finished run's adapter to Make, with the recipe it is for. @param {string} id */
export function openInMake(id) {
  const made = /** @type {any} */ (adapters.value.find((each) => each.id === id));
  const named = made && recipeOf(made.recipe);
  // Several recipes may be of one task: the one on the adapter's canvas has the words of its world.
  const alike = named && recipes.value.find((each) => each.prefix === named.prefix && each.markers.join() === named.markers.join() && each.width === made.width && each.height === made.height);
  const recipe = (alike ?? named)?.name;
  change({ adapter: id, ...(recipe ? { recipe } : {}), shown: "", keep: [] });
  go("make");
}

/** @param {{run: Run}} props */
function Losses({ run }) {
  const { rows, measures } = seen.value;
  if (!rows.length) return html`<p class="quiet">The first step is still to come.</p>`;
  const points = rows.map((row) => [row.step, row.loss]);
  const mean = smoothed(points);
  const held = measures.map((row) => [row.step, row.held_out]);
  const said = `Loss by step, now ${mean.at(-1)?.[1].toFixed(3)}${held.length ? `; on held-out sets ${held.at(-1)?.[1].toFixed(3)}` : ""}`;
  return html`<${Chart} last=${run.steps} label=${said} series=${[
    { name: "each step", kind: "dots", points },
    { name: "running mean", kind: "mean", points: mean },
    { name: "trained sets", kind: "trained", points: measures.map((row) => [row.step, row.trained]) },
    { name: "held out", kind: "held", points: held },
  ]} />
  ${!held.length && html`<p class="help">No sets are held out: whether it only learns its sets by heart is not measured.</p>`}`;
}

/** Base beside adapter, by step. @param {{id: string, run: Run}} props */
function Previews({ id, run }) {
  const [at, setAt] = useState(/** @type {number | null} */ (null));
  const grids = run.previews.filter((name) => /^step-\d+\.png$/.test(name));
  if (!grids.length) return html`<p class="quiet">${run.settings.preview_every === 0 ? "This run draws none." : "The first are still to come; ask for one by “Preview now”."}</p>`;
  const turnTo = (/** @type {number} */ to) => setAt(to >= grids.length - 1 ? null : Math.max(0, to));
  const chosen = Math.min(at ?? grids.length - 1, grids.length - 1);
  const stem = grids[chosen].replace(/\.png$/, "");
  const step = Number(stem.slice(5));
  const address = (/** @type {string} */ name) => url(`runs/${encodeURIComponent(id)}/previews/${name}`);
  const beside = (/** @type {number} */ by) => html`<button type="button" class="unseen" tabindex="-1" aria-hidden="true" data-does=${by > 0 ? "run next" : "run before"} onClick=${() => turnTo(chosen + by)}></button>`;
  const singles = run.previews.filter((name) => name.startsWith(`${stem}-`));
  return html`
    ${singles.length && run.previews.includes("base-1.png")
      ? singles.map((name, n) => html`<${Pair} key=${n} about=${`Preview ${n + 1}`} left=${{ src: address(`base-${n + 1}.png`), name: "base" }} right=${{ src: address(name), name: `adapter, step ${step}` }} />`)
      : html`<${Picture} class="grid" src=${address(grids[chosen])} alt=${`Previews of step ${step}: base and adapter side by side`} />`}
    ${beside(1)}${beside(-1)}<label class="slider"><span>Step ${step}</span><input type="range" min="0" max=${grids.length - 1} value=${chosen} aria-label="Step of the previews" aria-valuetext=${`step ${step}`}
      onInput=${(/** @type {any} */ event) => turnTo(Number(event.currentTarget.value))} /><span>${grids.length} drawn</span></label>`;
}

/** Notes that say the same of several sets, as one. @param {string[]} notes */
function gathered(notes) {
  /** @type {Map<string, string[]>} */
  const found = new Map();
  for (const note of notes) {
    const [, name, text] = /^([^:\n]{1,60}): (.+)$/s.exec(note) ?? [null, "", note];
    found.set(text, [...(found.get(text) ?? []), ...(name ? [name] : [])]);
  }
  return [...found].map(([text, names]) => (names.length > 3 ? `${names.length} sets: ${text}` : names.length ? `${names.join(", ")}: ${text}` : text));
}

/** True for a setting that is not as usual. @param {string} name @param {any} value */
function own(name, value) {
  const kind = schemaIn("train", name);
  return kind !== null && value !== null && JSON.stringify(value) !== JSON.stringify(kind.default);
}

/** What it said, its settings, its last steps. @param {{run: Run, job: Job | undefined}} props */
function Log({ run, job }) {
  const { rows, notes } = seen.value;
  const took = job?.started && job.ended ? ` in ${lasting(job.ended - job.started)}` : "";
  return html`<section class="log" aria-label="Log"><h2>Log</h2>
    <dl class="facts"><div><dt>Dataset</dt><dd>${run.data}</dd></div>
      ${run.recipe && html`<div><dt>Recipe</dt><dd>${run.recipe}</dd></div>`}
      ${machine.value && html`<div><dt>Base</dt><dd>${machine.value.base}</dd></div>`}
      <div><dt>Settings</dt><dd>${Object.entries(run.settings).filter(([name, value]) => own(name, value)).map(([name, value]) => `${name} ${written(value)}`).join(", ") || "the usual ones"}</dd></div>
      ${run.saved.length > 0 && html`<div><dt>Saved</dt><dd>${run.saved.map((name) => name.replace(/^step-0*/, "")).join(", ")}</dd></div>`}
      ${job?.ended != null && html`<div><dt>Ended</dt><dd>${job.status}, ${ago(job.ended)}${took}</dd></div>`}</dl>
    ${notes.length > 0 && html`<details open=${notes.length < 6}><summary>What it said</summary><ul class="notes">${gathered(notes).map((text) => html`<li>${plain(text)}</li>`)}</ul></details>`}
    ${rows.length > 0 && html`<details><summary>The last steps</summary><table><thead><tr><th scope="col">Step</th><th scope="col">Loss</th><th scope="col">Sets</th></tr></thead>
      <tbody>${rows.slice(-40).reverse().map((row) => html`<tr key=${row.step}><td>${row.step}</td><td>${row.loss.toFixed(4)}</td><td>${row.sets.join(", ")}</td></tr>`)}</tbody></table></details>`}
  </section>`;
}
