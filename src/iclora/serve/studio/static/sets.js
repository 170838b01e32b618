// @ts-check
// Sets: the datasets of the folder, the sets of one, and one set.
import { call, get, post, Problem } from "./api.js";
import { html, useEffect, useRef, useState } from "./lib.js";
import { at, called, captioners, captioning, dataset, datasets, FILTERS, findings, loadDatasets, looked, openDataset, picture, place, refused, shown } from "./data.js";
import { Editor } from "./editor.js";
import { by, step, useKeys } from "./keys.js";
import { attempt, Icon, Picture, plain, Progress, Thumb, Wrong } from "./parts.js";
import { go, refine, route } from "./route.js";
import { jobs, know, machine, recipes } from "./state.js";
import { note } from "./undo.js";
import { unmarked } from "./words.js";
import { Choose, CutOff, NewDataset, over, pending, restoreUpload, useDrop } from "./upload.js";

/** @typedef {import("./data.js").Dataset} Dataset @typedef {import("./data.js").ImageSet} ImageSet */

export function Sets() {
  const { id, part } = route.value;
  useDrop();
  useEffect(restoreUpload, []);
  // Jobs write captions and datasets: whatever one has ended, it is looked at again.
  const ended = jobs.value.filter((job) => ["caption", "compose"].includes(job.kind) && job.ended !== null).length;
  useEffect(() => void loadDatasets(), [ended]);
  useEffect(() => {
    if (!id) return undefined;
    openDataset(id);
    const again = () => document.visibilityState === "visible" && openDataset(id);
    document.addEventListener("visibilitychange", again);
    return () => document.removeEventListener("visibilitychange", again);
  }, [id, ended]);
  const known = dataset.value?.id === id ? dataset.value : null;
  return html`<div class=${`sets ${over.value ? "over" : ""}`}>
    <${CutOff} />
    ${pending.value && html`<${NewDataset} />`}
    ${!id ? html`<${List} />`
      : refused.value ? html`<${Refused} id=${id} error=${refused.value} />`
      : !known ? html`<p class="quiet" role="status">Looking</p>`
      : part ? html`<${Editor} key=${`${id}/${part}`} dataset=${known} name=${part} />`
      : html`<${DatasetSets} dataset=${known} />`}
    ${over.value && html`<p class="drops" aria-hidden="true">Drop a folder of sets, or a zip</p>`}
  </div>`;
}

/** All datasets. */
function List() {
  const all = datasets.value;
  useKeys("sets", { next: () => step(".dataset a", 1), before: () => step(".dataset a", -1) });
  if (all === null) return html`<p class="quiet" role="status">Looking</p>`;
  if (!all.length && !pending.value) return html`<div class="nothing">
    <h2>No image sets yet</h2>
    <p class="quiet">A set is a folder of panels with a text, or one joined picture. Drop a folder of them here, or a zip.</p>
    <${Choose} /><${Draw} /></div>`;
  return html`<div class="buttons head"><h1>Sets</h1><span class="grow"></span><${Choose} /></div>
    <ul class="datasets">${all.map((each) => html`<${Card} key=${each.id} one=${each} />`)}</ul>
    <${Draw} />`;
}

/** More drawings, for the base that paints them. */
function Draw() {
  const [busy, setBusy] = useState(false);
  if (machine.value?.base !== "toyland" || datasets.value?.some((each) => called(each.id) === "toyland-40")) return null;
  const draw = () => attempt(async () => {
    setBusy(true);
    try {
      const { id } = await post("examples", { name: "toyland-40", count: 40 });
      await loadDatasets();
      go(place(id));
    } finally {
      setBusy(false);
    }
  });
  return html`<p class="offer"><span>Nothing at hand? Toyland draws storyboards, enough to train on.</span>
    <button type="button" disabled=${busy} ...${by("sets", "draw")} onClick=${draw}>${busy ? "Drawing" : "Draw 40 storyboards"}</button></p>`;
}

/** @param {{one: {id: string, kind: string}}} props */
function Card({ one }) {
  const [page, setPage] = useState(/** @type {any} */ (null));
  const [error, setError] = useState(/** @type {Problem | null} */ (null));
  useEffect(() => {
    get(`${at(one.id)}/sets?limit=4`).then(setPage, setError);
  }, [one.id, datasets.value]);
  const named = called(one.id);
  return html`<li class="dataset"><a href=${`#/${place(one.id)}`}>
    <span class="few" aria-hidden="true">${error && html`<${Icon} name="folder" />`}${page?.sets.map((/** @type {any} */ each) => html`<${Picture} key=${each.name} src=${picture(one.id, each, "trained", 384)} alt="" />`)}</span>
    <span class="of"><b>${named}</b> <span class="quiet">${page ? `${page.total} ${page.total === 1 ? "set" : "sets"} · ${page.recipe}` : error ? "needs a recipe or cannot be read" : ""}${one.kind === "zip" ? " · zip, only read" : ""}</span></span>
  </a></li>`;
}

/** A dataset that cannot be opened: mostly it does not say its recipe. @param {{id: string, error: Problem}} props */
function Refused({ id, error }) {
  const [recipe, setRecipe] = useState("");
  const [wrong, setWrong] = useState(/** @type {Problem | null} */ (null));
  const choose = async (/** @type {Event} */ event) => {
    event.preventDefault();
    try {
      await call("PUT", `${at(id)}/recipe`, { recipe });
      await openDataset(id);
    } catch (problem) {
      if (!(problem instanceof Problem)) throw problem;
      setWrong(problem);
    }
  };
  return html`<nav class="steps" aria-label="Datasets"><a class="button bare" href="#/sets"><${Icon} name="back" /> Sets</a></nav>
    <div class="nothing"><h2>${called(id)}</h2><${Wrong} error=${wrong ?? error} />
    ${error.setting === "recipe" && !id.endsWith(".zip") && html`<form class="buttons" onSubmit=${choose}>
      <label><span class="unseen">Recipe</span><select required value=${recipe} onChange=${(/** @type {any} */ event) => setRecipe(event.currentTarget.value)}>
        <option value="">which recipe do its sets follow?</option>
        ${recipes.value.map((each) => html`<option value=${each.name}>${each.name}, ${each.boxes.length} panels</option>`)}</select></label>
      <button class="main" disabled=${!recipe}>It follows this one</button></form>`}</div>`;
}

// -- one dataset -------------------------------------------------------------------------------------

/** @param {{dataset: Dataset}} props */
function DatasetSets({ dataset }) {
  const { query } = route.value;
  const field = useRef(/** @type {any} */ (null));
  const values = Object.fromEntries(query);
  const sets = shown(dataset, query);
  const tail = query.toString() && `?${query}`;
  useKeys("sets", { next: () => step(".cards [data-set] a", 1), before: () => step(".cards [data-set] a", -1), search: () => field.current?.focus() });
  return html`<nav class="steps" aria-label="Datasets"><a class="button bare" href="#/sets"><${Icon} name="back" /> Sets</a></nav>
    <${Head} dataset=${dataset} />
    <search class="filters">
      <label class="grow"><span class="unseen">Words</span><input ref=${field} type="search" placeholder="Names and words" value=${query.get("q") ?? ""}
        onInput=${(/** @type {any} */ event) => refine({ ...values, q: event.currentTarget.value })} /></label>
      ${FILTERS.map(([name, label, test]) => html`<button type="button" key=${name} aria-pressed=${(query.get("only") ?? "") === name} ...${by("sets", name || "all")}
        onClick=${() => refine({ ...values, only: name })}>${label} <span class="quiet">${dataset.sets.filter(test).length}</span></button>`)}
    </search>
    ${dataset.problems.length > 0 && html`<details class="about" open=${dataset.problems.length < 4}><summary>${dataset.problems.length} things in the folder are not read, or double</summary>
      <ul>${dataset.problems.map((text) => html`<li>${plain(text)}</li>`)}</ul></details>`}
    ${sets.length
      ? html`<ul class="cards">${sets.map((one) => html`<${SetCard} key=${one.name} id=${dataset.id} one=${one} tail=${tail} />`)}</ul>`
      : html`<div class="nothing"><h2>${looked.value === null ? (query.get("only") && !query.get("q") ? "Nothing needs a look" : "No set is like that") : "Looking"}</h2>
          <button type="button" onClick=${() => refine({})}>Show all sets</button></div>`}`;
}

/** What it is, and what comes next. @param {{dataset: Dataset}} props */
function Head({ dataset }) {
  const { id, sets, form } = dataset;
  const bare = sets.filter((one) => !one.caption).length;
  const job = captioning(id);
  const caption = () => attempt(async () => {
    know(await post("jobs", { kind: "caption", input: { data: id, captioner: captioners.value[0] } }, { "Idempotency-Key": crypto.randomUUID() }));
    note("Queued; each caption is written as it comes");
  });
  return html`<div class="buttons head">
    <h1>${called(id)}</h1>
    <span class="quiet">${sets.length} ${sets.length === 1 ? "set" : "sets"} · ${form.name}${looked.value === null ? "" : ` · looked at ${looked.value}`}</span>
    <span class="grow"></span>
    ${job ? html`<${Progress} job=${job} />`
      : bare > 0 && captioners.value.length > 0 && !id.endsWith(".zip") && html`<button type="button" class="main" ...${by("sets", "caption")} onClick=${caption}>Caption ${bare === sets.length ? "all" : bare === 1 ? "the one without words" : `the ${bare} without words`}</button>`}
    ${bare === 0 && html`<a class="button" ...${by("sets", "train")} href=${`#/train?data=${encodeURIComponent(id)}`}>Train on it</a>`}
  </div>`;
}

/** @param {{id: string, one: ImageSet, tail: string}} props */
function SetCard({ id, one, tail }) {
  const found = findings.value[one.name];
  const bad = found?.problems.filter((each) => each.severity === "error").length ?? 0;
  const said = found?.problems.find((each) => each.severity === "error") ?? found?.problems[0];
  return html`<li class="card" data-set=${one.name}>
    <a href=${`#/${place(id, one.name)}${tail}`}><${Thumb} src=${picture(id, one, "trained", 384)} alt=${`Set ${one.name}`}
      onError=${(/** @type {any} */ event) => { const fallback = picture(id, one, "file", 384); if (event.currentTarget.src !== fallback) event.currentTarget.src = fallback; }} /></a>
    <div class="caption"><p><b>${one.name}</b> ${one.caption ? unmarked(one.caption) : html`<span class="quiet">no words yet</span>`}</p>
      ${said ? html`<p class=${bad ? "bad" : "quiet"}>${plain(said.text)}${found.problems.length > 1 ? `, and ${found.problems.length - 1} more` : ""}</p>`
        : html`<p class="quiet">${found?.tokens == null ? "" : `${found.tokens} tokens`}</p>`}</div>
  </li>`;
}
