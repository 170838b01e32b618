// @ts-check
// One set: as a trainer will see it, one field a panel, what `check` found, and changes by hand.
import { call, get, post, Problem, sendPicture } from "./api.js";
import { html, signal, useEffect, useMemo, useRef, useState } from "./lib.js";
import { Borders } from "./borders.js";
import { Caption } from "./caption.js";
import { asKnown, at, called, captioners, captioning, edit, know as knowSet, openDataset, picture, place, shown } from "./data.js";
import { by, useKeys } from "./keys.js";
import { Area, attempt, Icon, Picture, plain, Progress, Prompt, trouble, Wrong } from "./parts.js";
import { go, refine, route } from "./route.js";
import { jobs, know } from "./state.js";
import { done } from "./undo.js";
import { join, split, spoken } from "./words.js";

/** @typedef {import("./data.js").OneImageSet} One @typedef {import("./data.js").Dataset} Dataset */

/** The panel whose words are written, 0 if none. */
const current = signal(0);

/** @param {{dataset: Dataset, name: string}} props */
export function Editor({ dataset, name }) {
  const { id, form } = dataset;
  const { query } = route.value;
  const [one, setOne] = useState(/** @type {One | null} */ (null));
  const [missing, setMissing] = useState(/** @type {Problem | null} */ (null));
  const known = dataset.sets.find((each) => each.name === name);
  const load = () => get(at(id, name)).then((found) => {
    setOne(found);
    setMissing(null);
    knowSet(found, found);
    return found;
  }, (error) => void (error.status === 404 && setMissing(error)));
  // The list is asked for again whenever files may have changed.
  useEffect(() => void load(), [known?.etag, known?.stamp]);
  useEffect(() => void (unsent.value = {}), [name]);
  const tail = query.toString() && `?${query}`;
  const rows = shown(dataset, query);
  const all = rows.some((each) => each.name === name) ? rows : dataset.sets;
  const here = all.findIndex((each) => each.name === name);
  const step = (/** @type {number} */ by) => here >= 0 && all[here + by] && go(place(id, all[here + by].name) + tail);
  const up = place(id) + tail;
  if (missing) return html`<div class="nothing"><h2>This set is not there</h2><${Wrong} error=${missing} /><a class="button" href=${`#/${up}`}>To its dataset</a></div>`;
  if (!one) return html`<p class="quiet" role="status">Looking</p>`;
  const beside = (/** @type {number} */ way, /** @type {string} */ label, /** @type {string} */ icon) => html`<button type="button" class="bare" aria-label=${label} data-does=${way > 0 ? "one next" : "one before"} disabled=${!all[here + way]} onClick=${() => step(way)}><${Icon} name=${icon} /></button>`;
  const tall = one.canvas && one.canvas.height > one.canvas.width;
  return html`<article class=${`one editor ${tall ? "tall" : ""}`}>
    <${Keys} up=${() => go(up)} />
    <nav class="steps wide" aria-label="Sets"><a class="button bare" href=${`#/${up}`}><${Icon} name="back" /> ${called(id)}</a>
      <h1>${name}</h1>
      <span class="quiet beside">${here + 1} of ${all.length} ${beside(-1, "Set before (k)", "back")}${beside(1, "Next set (j)", "next")}</span></nav>
    <div class="stage"><${Stage} dataset=${dataset} one=${one} after=${async () => { await openDataset(id); await load(); }} up=${() => go(up)} /></div>
    <div class="side"><${Words} key=${name} dataset=${dataset} one=${one} load=${load} form=${form} /></div>
  </article>`;
}

/** @param {{up: () => void}} props */
function Keys({ up }) {
  useKeys("one", { words: (n) => document.getElementById(`words-${n}`)?.focus() });
  useKeys("all", { close: () => { if (trouble.value) trouble.value = null; else up(); } });
  return null;
}

// -- pictures ----------------------------------------------------------------------------------------

/** @param {{dataset: Dataset, one: One, after: () => any, up: () => void}} props */
function Stage({ dataset, one, after, up }) {
  const { id } = dataset;
  const { query } = route.value;
  const zip = id.endsWith(".zip");
  const borders = one.composite && !zip && query.get("view") === "borders";
  const turn = (/** @type {string} */ view) => refine({ ...Object.fromEntries(query), view });
  const found = one.problems.filter((each) => !each.caption);
  const leave = () => edit(id, `Set ${one.name} is left out`, () => call("DELETE", at(id, one.name), undefined, asKnown(one)), async () => {
    up();
    await after();
  });
  if (borders) return html`<${Borders} dataset=${dataset} one=${one} close=${() => turn("")} after=${after} />`;
  return html`<${Panels} dataset=${dataset} one=${one} after=${after} still=${zip} />
    <p class="quiet size">${one.canvas
      ? html`<span>As it is trained: ${one.canvas.width} × ${one.canvas.height} px${one.canvases > 1 ? ` and ${one.canvases - 1} smaller` : ""}</span><span>${fit(one)}</span>`
      : "It has no canvas yet, so it cannot be trained on."}</p>
    ${found.map((each) => html`<${Said} each=${each} key=${each.text} />`)}
    ${!zip && html`<div class="buttons">
      ${one.composite && html`<button type="button" ...${by("one", "borders")} onClick=${() => turn("borders")}>Move borders</button>`}
      <button type="button" ...${by("one", "leave")} onClick=${leave}><${Icon} name="trash" /> Leave this set out</button></div>`}
    ${zip && html`<p class="help">A zip is only read. Unpack it, or drop it on this page, to change its sets.</p>`}`;
}

/** How panels fit their boxes, in words. @param {One} one */
function fit(one) {
  const worst = Math.max(1, ...one.stretch);
  const panel = one.stretch.indexOf(worst) + 1;
  return worst > 1.005 ? `panel ${panel} is stretched by ${(100 * (worst - 1)).toFixed(worst > 1.1 ? 0 : 1)}%, nothing is cropped` : "nothing is cropped or stretched";
}

const upper = (/** @type {string} */ text) => text.charAt(0).toUpperCase() + text.slice(1);

/** @param {{each: import("./data.js").Finding}} props */
const Said = ({ each }) => html`<p class=${each.severity === "error" ? "wrong" : "look"}><strong>${upper(plain(each.text.split("\n")[0]))}.</strong> ${plain(each.advice)}</p>`;

const share = (/** @type {number} */ part, /** @type {number} */ whole) => `${(100 * part) / whole}%`;

/**
 * The canvas with its panels as slots; files side by side if there is no canvas.
 * @param {{dataset: Dataset, one: One, after: () => any, still: boolean}} props
 */
function Panels({ dataset, one, after, still }) {
  const { id, form } = dataset;
  const canvas = one.canvas;
  const change = (/** @type {any} */ body, /** @type {string} */ said) =>
    edit(id, said, () => post(`${at(id, one.name)}/panels`, body, asKnown(one)), after);
  const count = canvas ? canvas.boxes.length : one.images.length;
  const slots = Array.from({ length: count }, (_, n) => n + 1);
  const tools = { dataset, one, change, count, still };
  const missing = one.composite || still ? 0 : form.boxes.length - count;
  if (canvas) return html`<div class="canvas" style=${{ aspectRatio: `${canvas.width} / ${canvas.height}`, "--shape": canvas.width / canvas.height }}>
    <${Picture} class="whole" src=${picture(id, one, "trained", 1536)} alt=${`Set ${one.name}, as it is trained`} eager=${true} />
    ${slots.map((n) => { const [left, top, width, height] = canvas.boxes[n - 1]; return html`<${Slot} key=${n} n=${n} ...${tools}
      style=${{ left: share(left, canvas.width), top: share(top, canvas.height), width: share(width, canvas.width), height: share(height, canvas.height) }} />`; })}
  </div>`;
  return html`<ol class="files">${slots.map((n) => html`<li key=${n}><${Slot} n=${n} ...${tools} style=${null}>
      <${Picture} src=${picture(id, one, "file", 384, n)} alt=${one.images[n - 1]} /><//></li>`)}
    ${missing > 0 && html`<li><${Add} n=${count + 1} change=${change} /></li>`}</ol>`;
}

/** Pictures that were refused, by panel. */
const unsent = signal(/** @type {Record<number, Problem>} */ ({}));

/** Put a picture into a panel's place. @param {number} n @param {Blob | undefined} file @param {(body: any, said: string) => any} change */
const replace = (n, file, change) => {
  const { [n]: _, ...others } = unsent.value;
  unsent.value = others;
  return file && attempt(async () => {
    const { sha256 } = await sendPicture(file);
    await change({ do: "replace", panel: n, picture: sha256 }, `Panel ${n} has another picture`);
  }, (problem) => (unsent.value = { ...unsent.value, [n]: problem }));
};

/** @param {{n: number, change: (body: any, said: string) => any}} props */
const Add = ({ n, change }) => html`<label class="button">
  <input type="file" accept="image/*,.heic,.tif,.tiff" class="unseen" aria-label=${`Choose a picture for panel ${n}`} onChange=${(/** @type {any} */ event) => replace(n, event.currentTarget.files[0], change)} />
  <${Icon} name="picture" /> Add panel ${n}</label><${Wrong} error=${unsent.value[n]} />`;

/**
 * One panel: what can be done with its picture.
 * @param {{n: number, count: number, dataset: Dataset, one: One, change: (body: any, said: string) => any, still: boolean,
 *   style: any, children?: any}} props
 */
function Slot({ n, count, dataset, one, change, still, style, children }) {
  const [over, setOver] = useState(false);
  const marker = dataset.form.markers[n - 1];
  const label = marker ? spoken(marker) : `Panel ${n}`;
  const swap = (/** @type {number} */ other) => other >= 1 && other <= count && other !== n && change({ do: "swap", panel: n, other }, `Panels ${Math.min(n, other)} and ${Math.max(n, other)} have changed places`);
  const out = () => change({ do: "leave_out", panel: n }, `Panel ${n} is left out`);
  const keyed = (/** @type {KeyboardEvent} */ event) => {
    if (event.target !== event.currentTarget || still) return;
    /** @type {Record<string, () => void>} */
    const keys = { "Shift+ArrowLeft": () => swap(n - 1), "Shift+ArrowUp": () => swap(n - 1), "Shift+ArrowRight": () => swap(n + 1), "Shift+ArrowDown": () => swap(n + 1), Enter: () => document.getElementById(`words-${n}`)?.focus() };
    const work = keys[`${event.shiftKey ? "Shift+" : ""}${event.key}`];
    if (!work) return;
    event.preventDefault();
    event.stopPropagation();
    work();
  };
  const drop = (/** @type {DragEvent} */ event) => {
    setOver(false);
    const from = Number(event.dataTransfer?.getData("text/panel"));
    const file = [...(event.dataTransfer?.files ?? [])].find((each) => each.type.startsWith("image/"));
    if (!from && !file) return;
    event.preventDefault();
    event.stopPropagation();
    if (from) swap(from);
    else replace(n, file, change);
  };
  const hands = still ? {} : {
    draggable: true, onDragStart: (/** @type {DragEvent} */ event) => event.dataTransfer?.setData("text/panel", String(n)),
    onDragOver: (/** @type {DragEvent} */ event) => { event.preventDefault(); setOver(true); }, onDragLeave: () => setOver(false), onDrop: drop,
  };
  return html`<div class=${`slot full ${over ? "over" : ""} ${current.value === n ? "current" : ""}`} style=${style} data-panel=${n} id=${`panel-${n}`} data-acts tabindex="0" role="group" aria-label=${`${label}, panel ${n}`}
    onKeyDown=${keyed} ...${hands}>
    ${children}
    <div class="tag"><b>${n}</b> <span>${label}</span></div>
    ${!still && html`<div class="tools">
      <button type="button" title=${by("one", "earlier").title} aria-label=${`Panel ${n} earlier`} disabled=${n === 1} onClick=${() => swap(n - 1)}><${Icon} name="back" /></button>
      <button type="button" title=${by("one", "later").title} aria-label=${`Panel ${n} later`} disabled=${n === count} onClick=${() => swap(n + 1)}><${Icon} name="next" /></button>
      <label class="button" title=${by("one", "choose").title}><input type="file" ...${by("one", "choose")} accept="image/*,.heic,.tif,.tiff" class="unseen" aria-label=${`Choose another picture for panel ${n}`}
        onChange=${(/** @type {any} */ event) => replace(n, event.currentTarget.files[0], change)} /><${Icon} name="picture" /></label>
      ${count > 2 && html`<button type="button" ...${by("one", "out")} aria-label=${`Leave panel ${n} out`} onClick=${out}><${Icon} name="close" /></button>`}
    </div>`}
    <${Wrong} error=${unsent.value[n]} />
  </div>`;
}

// -- words -------------------------------------------------------------------------------------------

const STATES = { saved: "Saved", unsaved: "Not saved yet", saving: "Saving", away: "The server is away; kept in this browser" };

/** @param {{dataset: Dataset, one: One, load: () => Promise<One | void>, form: import("./data.js").Form}} props */
function Words({ dataset, one, load, form }) {
  const caption = useMemo(() => new Caption(dataset.id, one), [dataset.id, one.name]);
  useEffect(() => {
    // Words that are wrong are not counted by what `check` found.
    if (one.caption && one.tokens === null) caption.judge();
    return () => caption.close();
  }, [caption]);
  useEffect(() => caption.heard(one), [one.etag]);
  const zip = dataset.id.endsWith(".zip");
  const text = caption.text.value;
  // As they stand in the fields: read back from the joined text they have lost a space at the end.
  const fields = useRef(/** @type {{overview: string, panels: string[]} | null} */ (null));
  const own = fields.current;
  const parts = own && join(form, own.overview, own.panels) === text ? own : split(form, text);
  const judged = caption.judged.value;
  const tokens = judged ?? { tokens: one.tokens ?? 0, limit: one.limit, exact: one.exact, problem: "", advice: "" };
  const theirs = caption.theirs.value;
  const problem = caption.error.value ?? (judged?.problem && text ? judged : null);
  const found = judged ? [] : one.problems.filter((each) => each.caption && one.caption);
  const typed = (/** @type {string} */ overview, /** @type {string[]} */ panels) => {
    fields.current = { overview, panels };
    caption.write(join(form, overview, panels));
  };
  const field = (/** @type {number} */ n, /** @type {string} */ label, /** @type {string} */ value, /** @type {(text: string) => void} */ write) => html`<div class="field" key=${n}
      onFocusIn=${() => (current.value = n)} onFocusOut=${() => (current.value = 0)}>
    <label for=${`words-${n}`}>${n > 0 && html`<span class="marker">${form.markers[n - 1]}</span> `}${label}</label>
    <${Area} id=${`words-${n}`} value=${value} invalid=${Boolean(problem)} describedby="words-wrong" onInput=${write} /></div>`;
  return html`<fieldset class="words" disabled=${zip}>
    <legend class="unseen">Words</legend>
    ${theirs ? html`<${Conflict} caption=${caption} theirs=${theirs.caption} />`
      : parts ? html`${field(0, "All panels", parts.overview, (value) => typed(value, parts.panels))}
        ${form.markers.map((_, n) => field(n + 1, "", parts.panels[n], (value) => typed(parts.overview, parts.panels.map((each, m) => (m === n ? value : each)))))}`
      : html`<div class="field"><label for="words-0">Joint caption</label>
          <${Area} id="words-0" rows=${8} value=${text} invalid=${true} describedby="words-wrong words-help" onInput=${(/** @type {string} */ value) => caption.write(value)} />
          <p class="help" id="words-help">Markers: ${form.markers.join(" ")}</p></div>`}
    ${problem && html`<${Wrong} id="words-wrong" error=${problem} />`}
    ${found.map((each) => html`<${Said} each=${each} key=${each.text} />`)}
    <${Meter} tokens=${tokens} />
    <p class="quiet size start-of"><span role="status">${zip ? "Only read" : STATES[caption.state.value]}</span></p>
  </fieldset>
  ${!zip && html`<${Again} dataset=${dataset} one=${one} caption=${caption} load=${load} />`}`;
}

/** How much of what the base reads is used. @param {{tokens: {tokens: number, limit: number, exact: boolean}}} props */
function Meter({ tokens: { tokens, limit, exact } }) {
  const over = tokens > limit;
  return html`<p class=${`tokens ${over ? "over" : ""}`}><span class="meter" aria-hidden="true"><span style=${{ width: `${Math.min(100, (100 * tokens) / limit)}%` }}></span></span>
    <span>${exact ? "" : "about "}${tokens} of ${limit} tokens${exact ? "" : "; the base's tokenizer is not at hand here, check counts them"}${over ? "; the rest would be cut off" : ""}</span></p>`;
}

/** Two versions of the words, to choose from. @param {{caption: Caption, theirs: string}} props */
const Conflict = ({ caption, theirs }) => html`<div class="conflict" role="alert">
  <p><strong>The file was changed meanwhile.</strong> Nothing is lost: choose which words stay.</p>
  <div class="versions"><section aria-label="Yours"><h3>Yours</h3><p class="prompt"><${Prompt} text=${caption.text.value} /></p>
      <button type="button" class="main" ...${by("one", "mine")} onClick=${() => caption.keepMine()}>Keep mine</button></section>
    <section aria-label="On the disk"><h3>On the disk</h3><p class="prompt"><${Prompt} text=${theirs || "(no words)"} /></p>
      <button type="button" ...${by("one", "theirs")} onClick=${() => attempt(() => caption.takeTheirs())}>Take the one on the disk</button></section></div>
</div>`;

/** Have a captioner write. @param {{dataset: Dataset, one: One, caption: Caption, load: () => Promise<One | void>}} props */
function Again({ dataset, one, caption, load }) {
  const [id, setId] = useState("");
  const [who, setWho] = useState("");
  /** The words that the captioner writes over. */
  const before = useRef("");
  const job = jobs.value.find((each) => each.id === id) ?? captioning(dataset.id);
  const all = captioners.value;
  const failed = job && job.id === id && /** @type {any} */ (job.result)?.failed?.[0];
  useEffect(() => {
    if (!id || !job || job.id !== id || job.ended === null) return;
    load().then((now) => {
      const old = before.current;
      if (now && old && now.caption !== old) done(`${one.name} is captioned again`, () => caption.back(old));
    });
  }, [job?.status]);
  const begin = () => attempt(async () => {
    // What was written is on the disk first, so that undo has it.
    if (caption.state.value !== "saved" && !(await caption.save()) && !caption.error.value) return;
    before.current = caption.there;
    const input = { data: dataset.id, captioner: who || all[0], only: [one.name], overwrite: true };
    const posted = await post("jobs", { kind: "caption", input }, { "Idempotency-Key": crypto.randomUUID() });
    know(posted);
    setId(posted.id);
  });
  if (!all.length) return html`<p class="help">No captioner is offered: start the studio with one, such as openai:MODEL.</p>`;
  return html`<div class="start"><div class="buttons">
      <button type="button" class=${`caption-again ${one.caption ? "" : "main"}`} ...${by("one", "caption")} disabled=${Boolean(job && job.ended === null)} onClick=${begin}>${one.caption ? "Caption this set again" : "Caption this set"}</button>
      ${all.length > 1 ? html`<label><span class="unseen">Captioner</span><select value=${who || all[0]} onChange=${(/** @type {any} */ event) => setWho(event.currentTarget.value)}>${all.map((each) => html`<option>${each}</option>`)}</select></label>`
        : html`<span class="quiet">by ${all[0]}</span>`}
    </div>
    <div class="following" aria-live="polite">${job && job.ended === null && html`<${Progress} job=${job} /><button type="button" ...${by("one", "stop")} onClick=${() => attempt(async () => know(await post(`jobs/${job.id}/cancel`)))}>Cancel</button>`}</div>
    ${job && job.id === id && html`<${Wrong} error=${job.error} />`}
    ${failed && html`<${Wrong} error=${failed} />`}
  </div>`;
}
