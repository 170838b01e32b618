// @ts-check
// Compare: arms side by side on the same prompts and seeds, with figures and intervals; or made sets.
import { get, post, Problem, url } from "./api.js";
import { computed, html, signal, useEffect, useState } from "./lib.js";
import { Field, read } from "./forms.js";
import { by, useKeys } from "./keys.js";
import { kept } from "./kept.js";
import { listen } from "./live.js";
import { marks, setMarks } from "./marks.js";
import { Pair } from "./pair.js";
import { attempt, Icon, Picture, plain, Progress, Prompt, trouble, Wrong } from "./parts.js";
import { go, refine, route } from "./route.js";
import { adapters, called, jobs, know, needForm, offers, recipeOf, recipes, setsChanged, usualSeconds } from "./state.js";
import { ago, lasting } from "./words.js";

/** @typedef {import("./state.js").Job} Job */

const store = kept("compare", () => ({
  recipe: "", arms: /** @type {string[] | null} */ (null), prompts: "", data: "", metrics: /** @type {string[] | null} */ (null),
  values: /** @type {Record<string, string>} */ ({}),
}));
const draft = store.now;
const ready = signal(false);
const metrics = computed(() => offers.value.metrics);
const datasets = signal(/** @type {{id: string}[]} */ ([]));
const wrong = signal(/** @type {Record<string, Problem>} */ ({}));

export function Compare() {
  const { id, query } = route.value;
  const sets = query.get("sets");
  const of = query.get("of");
  useEffect(() => {
    Promise.all([get("datasets"), needForm("evaluate"), store.restore()]).then(([found]) => {
      datasets.value = found.datasets;
      const asked = route.value.query.get("adapter");
      if (asked) store.change({ arms: [asked] });
      ready.value = true;
    }, (error) => {
      if (!(error instanceof Problem)) throw error;
      trouble.value = error;
    });
  }, []);
  useKeys("compare");
  if (id) return html`<${Result} id=${id} key=${id} />`;
  if (of) return html`<${Versions} of=${of} panel=${Math.max(1, Number(query.get("panel")) || 1)} key=${of} />`;
  if (sets) return html`<${Sets} ids=${sets.split(",").slice(0, 9)} />`;
  if (!ready.value) return html`<p class="quiet compare" role="status">Looking</p>`;
  return html`<div class="compare train"><section class="new" aria-label="A new comparison"><h1>Compare</h1><${Ask} /></section><${Past} /></div>`;
}

/** The adapter that was trained last. */
function newest() {
  const trained = jobs.value.filter((job) => job.kind === "train" && job.status === "succeeded").map((job) => job.input.resume ?? `runs~${job.input.name}`);
  return [...trained, ...adapters.value.map((each) => each.id)].find((id) => adapters.value.some((each) => each.id === id));
}

const chosen = () => draft.value.arms?.filter((id) => adapters.value.some((each) => each.id === id)) ?? [newest() ?? []].flat();
const lines = () => draft.value.prompts.split("\n").map((line) => line.trim()).filter(Boolean);

async function begin() {
  const now = draft.value;
  const { input, wrong: bad } = read({ seeds: "3", ...Object.fromEntries(Object.entries(now.values).filter(([, text]) => text.trim())) }, "evaluate");
  wrong.value = Object.fromEntries(Object.entries(bad).map(([name, problem]) => [name, new Problem(422, { problem })]));
  if (!now.data && !lines().length) wrong.value = { ...wrong.value, prompt: new Problem(422, { problem: "there are no prompts yet", advice: "Write one a line, or take the example." }) };
  if (Object.keys(wrong.value).length) return;
  try {
    const job = await post("jobs", { kind: "evaluate", input: {
      ...input, adapter: chosen(), metric: now.metrics ?? metrics.value,
      ...(now.data ? { data: now.data } : { prompt: lines(), recipe: now.recipe }),
    } }, { "Idempotency-Key": crypto.randomUUID() });
    know(job);
    go(`compare/${job.id}`);
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    wrong.value = { [error.setting ?? (error.code === "CaptionError" ? "prompt" : "")]: error };
  }
}

function Ask() {
  const now = draft.value;
  const recipe = recipeOf(now.recipe);
  useEffect(() => {
    const own = recipes.value.find((each) => each.name === "toyland-storyboard");
    if (!recipe && recipes.value.length) store.change({ recipe: (own ?? recipeOf("film-storyboard") ?? recipes.value[0]).name });
  }, [recipe, recipes.value]);
  const arms = chosen();
  const measured = now.metrics ?? metrics.value;
  const toggle = (/** @type {string[]} */ all, /** @type {string} */ one) => (all.includes(one) ? all.filter((each) => each !== one) : [...all, one]);
  const seeds = Number(now.values.seeds) || 3;
  const count = (lines().length || 0) * seeds * (arms.length + 1);
  const each = usualSeconds(now.recipe);
  const field = (/** @type {string} */ name, /** @type {string | undefined} */ empty = undefined) => html`<${Field} form="evaluate" name=${name} value=${now.values[name] ?? ""} error=${wrong.value[name]} empty=${empty}
    onValue=${(/** @type {string} */ text) => store.change({ values: { ...now.values, [name]: text } })} />`;
  const rest = Object.entries(wrong.value).filter(([name]) => !["prompt", "recipe", "adapter", "data", "metric", "seeds", "steps", "strengths"].includes(name));
  return html`<form class="fields" onSubmit=${(/** @type {Event} */ event) => { event.preventDefault(); begin(); }}>
    <fieldset class="ticks"><legend>Arms</legend>
      <label><input type="checkbox" checked disabled /> the base alone</label>
      ${adapters.value.map((one) => html`<label key=${one.id}><input type="checkbox" checked=${arms.includes(one.id)} onChange=${() => store.change({ arms: toggle(arms, one.id) })} /> ${called(one.id)}</label>`)}
      ${!adapters.value.length && html`<p class="help">There is no adapter yet: <a href="#/train">train one</a>.</p>`}
      <${Wrong} error=${wrong.value.adapter} /></fieldset>
    <div class="pair">
      <div class="field"><label for="compare-data">Prompts</label><select id="compare-data" value=${now.data} onChange=${(/** @type {any} */ event) => store.change({ data: event.currentTarget.value })}>
        <option value="">written below</option>${datasets.value.map((one) => html`<option value=${one.id}>captions of ${one.id.replace(/^data~/, "")}</option>`)}</select><${Wrong} error=${wrong.value.data} /></div>
      <div class="field"><label for="compare-recipe">Recipe</label><select id="compare-recipe" value=${now.recipe} disabled=${Boolean(now.data)} onChange=${(/** @type {any} */ event) => store.change({ recipe: event.currentTarget.value })}>
        ${recipes.value.map((one) => html`<option>${one.name}</option>`)}</select><${Wrong} error=${wrong.value.recipe} /></div>
    </div>
    ${!now.data && html`<div class="field">
      ${!now.prompts && recipe && html`<p class="offer">One joint prompt a line.<button type="button" ...${by("compare", "example")} onClick=${() => store.change({ prompts: recipe.example.replace(/\s*\n\s*/g, " ") }, "The example is filled in")}>Take the example</button></p>`}
      <label for="compare-prompts">Joint prompts</label>
      <textarea class="tall" id="compare-prompts" rows="5" value=${now.prompts} aria-invalid=${Boolean(wrong.value.prompt)} onInput=${(/** @type {any} */ event) => { const { prompt: _, ...others } = wrong.value; wrong.value = others; store.change({ prompts: event.currentTarget.value }); }}></textarea>
      <${Wrong} error=${wrong.value.prompt} /></div>`}
    <div class="pair">${field("seeds", "3")}${field("steps")}</div>
    ${metrics.value.length > 0 && html`<fieldset class="ticks"><legend>Measured by</legend>
      ${metrics.value.map((name) => html`<label key=${name}><input type="checkbox" checked=${measured.includes(name)} onChange=${() => store.change({ metrics: toggle(measured, name) })} /> ${name}</label>`)}
      <${Wrong} error=${wrong.value.metric} /></fieldset>`}
    <div class="start">${rest.map(([name, error]) => html`<${Wrong} key=${name} error=${error} />`)}
      <div class="buttons"><button class="main" ...${by("compare", "start")}>Compare</button>
        ${count > 0 && !now.data && html`<span class="quiet">${count} sets${each === null ? "" : `, about ${lasting(each * count)}`}${lines().length < 20 ? "; intervals over fewer than 20 prompts are too narrow" : ""}</span>`}</div></div>
  </form>`;
}

function Past() {
  const past = jobs.value.filter((job) => job.kind === "evaluate").sort((a, b) => b.created - a.created).slice(0, 20);
  return html`<section class="runs" aria-label="Comparisons"><h2>Comparisons</h2>
    ${!past.length && html`<p class="quiet">What you compare is listed here. Two made sets are compared from the gallery: mark them with x.</p>`}
    ${marks.value.length > 0 && html`<p><a class="button" ...${by("compare", "marked")} href=${`#/compare?sets=${marks.value.join(",")}`}>Marked sets (${marks.value.length})</a></p>`}
    <ul class="rows">${past.map((job) => html`<li class="row bare-row" key=${job.id}><div class="what"><p><a href=${`#/compare/${job.id}`}><b>${armsOf(job).map(called).join(", ")}</b></a></p>
      <p>${job.ended === null ? html`<${Progress} job=${job} />` : html`<span class="quiet">${job.input.prompt?.length ? `${job.input.prompt.length} prompt${job.input.prompt.length > 1 ? "s" : ""}` : job.input.data} · ${job.status}, ${ago(job.ended)}</span>`}</p></div></li>`)}</ul>
  </section>`;
}

const armsOf = (/** @type {any} */ job) => job.result?.arms ?? ["base", ...(job.input.adapter ?? [])];
/** An arm's folder, as an evaluation names it. @param {string} arm */
const folderOf = (arm) => arm.replace(/[^\p{L}\p{N}_.+-]+/gu, "-").replace(/^[.-]+|[.-]+$/g, "") || "arm";

/** A comparison: its figures, and its sets two by two. @param {{id: string}} props */
function Result({ id }) {
  const found = useResult(id);
  const { job, files, table } = found.value;
  if (found.value.missing) return html`<div class="nothing compare"><h2>This comparison is gone</h2><a class="button" href="#/compare">Compare anew</a></div>`;
  if (!job) return html`<p class="quiet compare" role="status">Looking</p>`;
  const live = jobs.value.find((each) => each.id === id) ?? job;
  const arms = armsOf(live);
  return html`<article class="compare">
    <nav class="steps"><a class="button bare" href="#/compare"><${Icon} name="back" /> Compare</a></nav>
    <h1>${arms.map(called).join(" · ")}</h1>
    ${live.ended === null && html`<p class="buttons"><${Progress} job=${live} /><button type="button" ...${by("compare", "stop")} onClick=${() => attempt(async () => know(await post(`jobs/${id}/cancel`)))}>Stop</button></p>`}
    <${Wrong} error=${live.error} />
    ${(live.status === "cancelled" || live.status === "failed") && html`<p><button type="button" class="main" ...${by("compare", "resume")} onClick=${() => attempt(async () => know(await post(`jobs/${id}/retry`)))}>Go on</button> <span class="quiet">sets that are made are kept</span></p>`}
    <${Cases} id=${id} job=${live} arms=${arms} files=${files} />
    ${table && html`<${Figures} table=${table} arms=${arms} />`}
    ${files.includes("report.html") && html`<p class="help"><a href=${url(`jobs/${id}/files/report.html`)} target="_blank" rel="noopener">The report as one page</a></p>`}
  </article>`;
}

const state = signal({ job: /** @type {Job | null} */ (null), files: /** @type {string[]} */ ([]), table: /** @type {any} */ (null), missing: false });

/** @param {string} id */
function useResult(id) {
  useEffect(() => {
    state.value = { job: null, files: [], table: null, missing: false };
    let turn = 0;
    const look = async () => {
      const mine = ++turn;
      try {
        const [job, { files }] = await Promise.all([get(`jobs/${id}`), get(`jobs/${id}/files`)]);
        const table = files.includes("evaluation.json") ? await get(`jobs/${id}/files/evaluation.json`) : null;
        if (mine === turn) state.value = { job, files, table, missing: false };
      } catch (error) {
        if (!(error instanceof Problem)) throw error;
        if (error.status === 404 && mine === turn) state.value = { ...state.value, missing: true };
      }
    };
    look();
    /** @type {number | undefined} */
    let timer;
    const stop = listen((type, data) => {
      const mine = type === "reset" || (type === "job" && data.id === id) || (data.job === id && type === "progress" && data.stage === "making");
      if (mine && !timer) timer = setTimeout(() => { timer = undefined; look(); }, 600);
    });
    return () => {
      stop();
      clearTimeout(timer);
      // What is on its way is of a comparison that is shown no more.
      turn += 1;
    };
  }, [id]);
  return state;
}

const rounded = (/** @type {number} */ value) => (Math.abs(value) >= 10 ? Number(value.toPrecision(4)).toString() : value.toFixed(3));
const within = (/** @type {any} */ one) => (one?.low == null ? "" : `${rounded(one.low)} to ${rounded(one.high)}`);

/** @param {{table: any, arms: string[]}} props */
function Figures({ table, arms }) {
  const rows = Object.entries(table.figures ?? {});
  return html`<section aria-label="Figures"><h2>Figures</h2><div class="scrolls" tabindex="0" role="group" aria-label="Table of figures"><table class="figures"><thead><tr><th scope="col">Mean and 95% interval</th>${arms.map((arm) => html`<th scope="col" key=${arm}>${called(arm)}</th>`)}</tr></thead>
    <tbody>${rows.map(([name, row]) => html`<tr key=${name}><th scope="row">${name}<span class="help">${row.meaning}</span></th>
      ${arms.map((arm) => {
        const one = row.arms[arm];
        const less = one?.difference;
        const telling = less?.low != null && (less.low > 0 || less.high < 0);
        return html`<td key=${arm}>${one?.mean == null ? "–" : html`<b>${rounded(one.mean)}</b> <span class="quiet">${within(one)}</span>`}
          ${less && html`<span class=${telling ? "telling" : "quiet"}>${less.mean > 0 ? "+" : ""}${rounded(less.mean)}${less.low == null ? "" : ` (${within(less)})`}</span>`}</td>`;
      })}</tr>`)}</tbody></table></div>
    <p class="help">Below each figure the difference to ${called(table["compared with"])}; coloured where its interval leaves out zero.</p>
    ${(table.notes ?? []).map((/** @type {string} */ text) => html`<p class="help">${plain(text)}</p>`)}</section>`;
}

/** The sets, and two of them large. @param {{id: string, job: any, arms: string[], files: string[]}} props */
function Cases({ id, job, arms, files }) {
  const there = new Set(files);
  const path = (/** @type {string} */ arm, /** @type {number} */ n) => `${folderOf(arm)}/${String(n + 1).padStart(4, "0")}/composite.png`;
  const cases = [...new Set(files.flatMap((name) => /\/(\d{4,})\/composite\.png$/.exec(name)?.[1] ?? []).map((name) => Number(name) - 1))].sort((a, b) => a - b);
  const { query } = route.value;
  const at = Math.min(Number(query.get("case")) || 0, Math.max(0, cases.length - 1));
  const left = arms.includes(query.get("left") ?? "") ? /** @type {string} */ (query.get("left")) : arms[0];
  const right = arms.includes(query.get("right") ?? "") ? /** @type {string} */ (query.get("right")) : arms[1] ?? arms[0];
  const show = (/** @type {Record<string, string>} */ more) => refine({ case: String(at), left, right, ...more });
  if (!cases.length) return job.ended === null ? html`<p class="quiet">Sets are shown here as they are made.</p>` : null;
  const n = cases[at];
  const seeds = job.input.seeds ?? 1;
  const prompts = job.input.prompt ?? [];
  const about = (/** @type {number} */ each) => `${prompts.length ? `prompt ${Math.floor(each / seeds) + 1}` : `set ${Math.floor(each / seeds) + 1}`}, seed ${(job.input.seed ?? 0) + (each % seeds)}`;
  const address = (/** @type {string} */ arm, /** @type {number} */ each) => url(`jobs/${id}/files/${path(arm, each)}`);
  const pick = (/** @type {string} */ side, /** @type {string} */ value) => html`<label><span class="unseen">${side === "left" ? "Left" : "Right"} arm</span><select value=${value} onChange=${(/** @type {any} */ event) => show({ [side]: event.currentTarget.value })}>${arms.map((arm) => html`<option value=${arm}>${called(arm)}</option>`)}</select></label>`;
  return html`<section class="cases" aria-label="Sets">
    <div class="two"><div class="buttons"><b>${about(n)}</b>
        <button type="button" class="bare" aria-label="Set before (k)" ...${by("compare", "before")} disabled=${at === 0} onClick=${() => show({ case: String(at - 1) })}><${Icon} name="back" /></button>
        <button type="button" class="bare" aria-label="Next set (j)" ...${by("compare", "next")} disabled=${at === cases.length - 1} onClick=${() => show({ case: String(at + 1) })}><${Icon} name="next" /></button>
        ${arms.length > 2 && html`${pick("left", left)}${pick("right", right)}`}</div>
      ${there.has(path(left, n)) && there.has(path(right, n))
        ? html`<${Pair} about=${about(n)} left=${{ src: address(left, n), name: called(left) }} right=${{ src: address(right, n), name: called(right) }} />`
        : html`<p class="quiet">One of the two is still to come.</p>`}
      ${prompts[Math.floor(n / seeds)] && html`<p class="prompt"><${Prompt} text=${prompts[Math.floor(n / seeds)]} /></p>`}</div>
    <ol class="all">${cases.map((each, number) => html`<li key=${each}><button type="button" aria-pressed=${number === at} aria-label=${`Show ${about(each)}`} onClick=${() => show({ case: String(number) })}>
      ${arms.map((arm) => (there.has(path(arm, each)) ? html`<${Picture} key=${arm} src=${address(arm, each)} alt="" />` : html`<span class="blank" key=${arm}></span>`))}</button></li>`)}</ol>
  </section>`;
}

/** A panel beside the same panel of all sets that are related. @param {{of: string, panel: number}} props */
function Versions({ of, panel }) {
  const [all, setAll] = useState(/** @type {import("./set.js").Relative[] | null} */ (null));
  const [mine, setMine] = useState("");
  const [gone, setGone] = useState(/** @type {Problem | null} */ (null));
  useEffect(() => {
    get(`sets/${of}/lineage`).then(({ sets }) => {
      const found = versionsOf(sets, panel);
      // A panel that was kept is that of the set which this one was made of.
      let own = sets.find((/** @type {any} */ each) => each.id === of);
      while (own && !found.includes(own)) own = sets.find((/** @type {any} */ each) => each.id === own.source);
      setMine(own?.id ?? found.at(-1)?.id ?? "");
      setAll(found);
    }, setGone);
  }, [of, panel, setsChanged.value]);
  const { query } = route.value;
  const other = (/** @type {string} */ name) => all?.find((each) => each.id === query.get(name))?.id;
  const right = other("right") ?? mine;
  // The version before it, or else the next.
  const at = all?.findIndex((each) => each.id === right) ?? 0;
  const left = other("left") ?? (all?.[at - 1] ?? all?.[at + 1])?.id ?? "";
  const show = (/** @type {Record<string, string>} */ more) => refine({ of, panel: String(panel), left, right, ...more });
  const step = (/** @type {number} */ by) => {
    const others = all?.filter((each) => each.id !== right) ?? [];
    const to = others[others.findIndex((each) => each.id === left) + by];
    if (to) show({ left: to.id });
  };
  useKeys("compare", { next: () => step(1), before: () => step(-1) });
  const address = (/** @type {string} */ id) => url(`sets/${id}/panels/${panel}.png`);
  const named = (/** @type {string} */ id) => `version ${(all?.findIndex((each) => each.id === id) ?? 0) + 1}${id === mine ? ", the one in Make" : ""}`;
  if (gone) return html`<div class="nothing compare"><h2>This set is gone</h2><${Wrong} error=${gone} /><a class="button" href="#/gallery">To the gallery</a></div>`;
  if (!all) return html`<p class="quiet compare" role="status">Looking</p>`;
  if (all.length < 2) return html`<div class="nothing compare"><h2>Panel ${panel} has no other version yet</h2><p class="quiet">Make it again in Make, then compare the two.</p><a class="button main" href="#/make">To Make</a></div>`;
  return html`<article class="compare"><nav class="steps"><a class="button bare" href="#/make"><${Icon} name="back" /> Make</a></nav>
    <div class="head"><h1>Panel ${panel}</h1><p class="quiet">${all.length} versions, the oldest first</p></div>
    <section class="cases" aria-label="Versions"><div class="two"><${Pair} about=${`Panel ${panel}`} left=${{ src: address(left), name: named(left) }} right=${{ src: address(right), name: named(right) }} />
      <p class="help"><a href=${`#/gallery/${left}`}>left in the gallery</a> · <a href=${`#/gallery/${right}`}>right in the gallery</a></p></div>
      <ol class="all">${all.map(({ id }) => html`<li key=${id}><button type="button" aria-pressed=${id === left} aria-label=${`${named(id)} on the left`} onClick=${() => show({ left: id })}><${Picture} src=${address(id)} alt="" /></button></li>`)}</ol></section>
  </article>`;
}

/** Sets of a family whose panel is their own: kept, or the whole made again, it is that of their source. @param {import("./set.js").Relative[]} family @param {number} panel */
const versionsOf = (family, panel) => family.filter((each) => each.there && !each.trashed && (!each.source || each.panels.includes(panel)));

/** Made sets beside each other. @param {{ids: string[]}} props */
function Sets({ ids }) {
  const known = ids.filter((id) => /^[0-9a-f]{16}$/.test(id));
  const left = route.value.query.get("left") ?? known[0];
  const right = route.value.query.get("right") ?? known.at(-1) ?? known[0];
  const show = (/** @type {Record<string, string>} */ more) => refine({ sets: ids.join(","), left, right, ...more });
  const side = (/** @type {string} */ id) => ({ src: url(`sets/${id}/composite.png`), name: `set ${known.indexOf(id) + 1}` });
  const step = (/** @type {number} */ by) => {
    const to = known[known.indexOf(right) + by];
    if (to) show({ right: to });
  };
  useKeys("compare", { next: () => step(1), before: () => step(-1) });
  const clear = () => {
    setMarks([]);
    go("gallery");
  };
  if (known.length < 2) return html`<div class="nothing compare"><h2>One set is marked</h2><p class="quiet">Mark another in the gallery with x, or by Compare beside a set.</p><a class="button main" href="#/gallery">To the gallery</a></div>`;
  return html`<article class="compare"><nav class="steps"><a class="button bare" href="#/gallery"><${Icon} name="back" /> Gallery</a></nav>
    <div class="buttons"><h1>Marked sets</h1><button type="button" ...${by("compare", "unmark")} onClick=${clear}>Unmark all</button></div>
    <section class="cases" aria-label="Sets"><div class="two"><${Pair} about="Made set" left=${side(left)} right=${side(right)} />
      <p class="help"><a href=${`#/gallery/${left}`}>left in the gallery</a> · <a href=${`#/gallery/${right}`}>right in the gallery</a></p></div>
      <ol class="all">${known.map((id, n) => html`<li key=${id}><button type="button" aria-pressed=${id === right} aria-label=${`Set ${n + 1} on the right`} onClick=${() => show({ right: id })}><${Picture} src=${url(`sets/${id}/thumb.webp`)} alt="" /></button></li>`)}</ol></section>
  </article>`;
}
