// @ts-check
// One made set: its panels, how it was made, where it is from, and what can be done with it.
import { get, pictureAt, post, Problem, url } from "./api.js";
import { html, useEffect, useState } from "./lib.js";
import { by, useKeys } from "./keys.js";
import { fill } from "./draft.js";
import { beside, restore, star, trash } from "./made.js";
import { draftOf, givenIn, wordsOf } from "./making.js";
import { compareWith, sendToStory } from "./marks.js";
import { attempt, Icon, Picture, Progress, Prompt, trouble, Wrong } from "./parts.js";
import { go, route } from "./route.js";
import { jobs, know, setsChanged } from "./state.js";
import { note } from "./undo.js";
import { ago } from "./words.js";

/** @typedef {{id: string, source: string | null, whole: boolean, panels: number[], relation: string, there: boolean, trashed: boolean}} Relative */

/** @param {{id: string}} props */
export function OneSet({ id }) {
  const [one, setOne] = useState(/** @type {any} */ (null));
  const [request, setRequest] = useState(/** @type {any} */ (null));
  const [origin, setOrigin] = useState(/** @type {any} */ (null));
  const [missing, setMissing] = useState(/** @type {Problem | null} */ (null));
  const [relatives, setRelatives] = useState(/** @type {Relative[]} */ ([]));
  const fails = (/** @type {unknown} */ error) => {
    if (!(error instanceof Problem)) throw error;
    // A set that is gone says so already.
    if (error.status !== 0 && error.status !== 404) trouble.value = error;
  };
  useEffect(() => {
    get(`sets/${id}`).then(setOne, (error) => error.status === 404 && setMissing(error));
  }, [id, setsChanged.value]);
  useEffect(() => {
    get(`sets/${id}/request.json`).then(setRequest, fails);
    get(`sets/${id}/origin`).then(setOrigin, fails);
  }, [id]);
  useEffect(() => {
    get(`sets/${id}/lineage`).then((found) => setRelatives(found.sets), fails);
  }, [id, setsChanged.value]);
  const query = route.value.query.toString();
  const tail = query && `?${query}`;
  const leave = () => go(`gallery${tail}`);
  useKeys("set");
  useKeys("all", { close: () => { if (trouble.value) trouble.value = null; else leave(); } });
  const step = (/** @type {number} */ by) => {
    const to = beside(id, by);
    if (to) go(`gallery/${to.id}${tail}`);
  };
  if (missing) return html`<div class="nothing"><h2>This set is gone</h2><${Wrong} error=${missing} /><a class="button" href="#/gallery">To the gallery</a></div>`;
  if (!one) return html`<p class="quiet" role="status">Looking</p>`;
  const boxes = request?.layout?.boxes ?? [];
  const given = givenIn(request);
  const change = () => {
    if (!request) return;
    const more = draftOf(id, request, origin ?? {});
    fill(request.prompt, undefined, more);
    go("make");
  };
  const tall = request && request.layout.height > request.layout.width;
  return html`<article class=${`one ${tall ? "tall" : ""}`}>
    <div class="stage">
      <${Picture} class="composite" src=${url(`sets/${id}/composite.png`)} alt=${`The whole set: ${one.prompt}`} eager=${true} />
      ${boxes.length > 1 && html`<ol class="panels">${boxes.map((/** @type {number[]} */ box, /** @type {number} */ n) => html`<li key=${n}>
        <a href=${url(`sets/${id}/panels/${n + 1}.png`)} download=${`panel-${n + 1}.png`} aria-label=${`Save panel ${n + 1}`}><${Picture} src=${url(`sets/${id}/panels/${n + 1}.png`)} alt="" /></a>
        <span class="quiet">${n + 1}${given.includes(n + 1) ? " · given" : ""}</span></li>`)}</ol>`}
    </div>
    <div class="side">
      <nav class="steps" aria-label="Sets"><a class="button bare" title="Esc" href=${`#/gallery${tail}`}><${Icon} name="back" /> Gallery</a>
        <span class="beside"><button type="button" class="bare" aria-pressed=${one.star} aria-label="Star" ...${by("set", "star")} onClick=${() => star(one)}><${Icon} name="star" /></button>
        ${!one.trashed && html`<button type="button" class="bare" aria-label="Move to the trash" ...${by("set", "out")} onClick=${() => trash(one, leave)}><${Icon} name="trash" /></button>`}
        <button type="button" class="bare" aria-label="Set before (k)" ...${by("set", "before")} disabled=${!beside(id, -1)} onClick=${() => step(-1)}><${Icon} name="back" /></button>
        <button type="button" class="bare" aria-label="Next set (j)" ...${by("set", "next")} disabled=${!beside(id, 1)} onClick=${() => step(1)}><${Icon} name="next" /></button></span></nav>
      <h1 class="unseen">A set of ${one.panels} panels</h1>
      <p class="prompt"><${Prompt} text=${one.prompt} /></p>
      <div class="buttons">
        <button type="button" class="main" ...${by("set", "change")} onClick=${change} disabled=${!request}>Change and make</button>
        <${Again} id=${id} relatives=${relatives} />
        <button type="button" ...${by("set", "compare")} onClick=${() => compareWith(id)}><${Icon} name="pair" /> Compare</button>
        <button type="button" disabled=${!request} ...${by("set", "tell")} onClick=${() => sendToStory(id, boxes.map((/** @type {any} */ _, /** @type {number} */ n) => n + 1), wordsOf(id, request, origin))}><${Icon} name="story" /> To the story</button>
        <a class="button" href=${url(`sets.zip?id=${id}`)} download ...${by("set", "zip", "Pictures and request as a zip")}><${Icon} name="down" /> Zip</a>
        ${one.trashed && html`<button type="button" ...${by("set", "restore")} onClick=${() => restore(one)}>Bring back</button>`}
      </div>
      <${Facts} one=${one} request=${request} origin=${origin} />
      <${Lineage} relatives=${relatives} />
      <${Copies} id=${id} origin=${origin} />
    </div>
  </article>`;
}

/** How it was made. @param {{one: import("./state.js").MadeSet, request: any, origin: any}} props */
function Facts({ one, request, origin }) {
  const rows = [
    ["Made", ago(one.made)],
    ["Recipe", one.recipe],
    ["Adapter", one.adapter || "the base alone"],
    ...(request ? [
      ["Base", request.base],
      ["Canvas", `${request.layout.width} × ${request.layout.height} px`],
      ["Steps", String(request.steps)],
      ["Guidance", String(request.guidance)],
      ...(Object.keys(request.given ?? {}).length ? [["Mode", request.mode]] : []),
      ["Seeds", request.seeds.join(", ")],
    ] : []),
    ...(origin?.path ? [["Folder", origin.path]] : []),
  ];
  return html`<dl class="facts">
    ${rows.map(([name, value]) => html`<div key=${name}><dt>${name}</dt><dd>${value}</dd></div>`)}
  </dl>`;
}

/** @param {Relative} each */
function howOf({ source, whole, panels }) {
  if (!source) return "first made";
  return whole ? "made again" : `panel ${panels.join(", ")} again`;
}

/** All that it was made of, and what was made of those. @param {{relatives: Relative[]}} props */
function Lineage({ relatives }) {
  if (relatives.length < 2) return null;
  const depth = (/** @type {Relative} */ each) => {
    let steps = 0;
    for (let at = relatives.find((other) => other.id === each.source); at && steps < 6; at = relatives.find((other) => other.id === at?.source)) steps += 1;
    return steps;
  };
  // A tree: each behind what it was made of.
  /** @type {(source: string | null) => Relative[]} */
  const below = (source) => (relatives.filter((each) => each.source === source).flatMap((each) => [each, ...below(each.id)]));
  return html`<section class="lineage" aria-label="Lineage"><h2>Lineage</h2>
    <ol>${below(null).map((each) => html`<li key=${each.id} class=${each.relation} style=${{ "--depth": depth(each) }} aria-current=${each.relation === "self" ? "true" : undefined}>
      ${each.there ? html`<a href=${`#/gallery/${each.id}`}><${Picture} src=${url(`sets/${each.id}/thumb.webp`)} alt="" /><span>${howOf(each)}</span></a>` : html`<span class="quiet">${howOf(each)}; not on the disk any more</span>`}
      <span class="quiet">${each.relation === "self" ? "this set" : each.relation === "beside" ? "" : each.relation}${each.trashed ? " · in the trash" : ""}</span></li>`)}</ol></section>`;
}

/** Make the same set again, and say whether it is the same. @param {{id: string, relatives: Relative[]}} props */
function Again({ id, relatives }) {
  const [verdict, setVerdict] = useState("");
  // What was asked for before a reload counts, too.
  const now = jobs.value.filter((each) => each.input.request === id).sort((a, b) => b.created - a.created)[0];
  const busy = Boolean(now && now.ended === null);
  const before = relatives.filter((each) => each.source === id && each.whole && each.there && !each.trashed).at(-1)?.id;
  const made = busy || now?.error ? "" : (now?.result?.sets?.[0] ?? before ?? "");
  useEffect(() => {
    setVerdict("");
    if (made) compare(id, made).then(setVerdict, (error) => {
      // What was made may be gone since.
      if (!(error instanceof Problem)) throw error;
    });
  }, [id, made]);
  const begin = () => attempt(async () => know(await post(`sets/${id}/reproduce`)));
  return html`<button type="button" onClick=${begin} ...${by("set", "again")} disabled=${busy}><${Icon} name="again" /> Make again</button>
    <span class="verdict" role="status">${now && busy && html`<${Progress} job=${now} />`}
      ${verdict && html`${verdict} <a href=${`#/gallery/${made}`}>See it</a>`}</span>
    ${now?.error && html`<${Wrong} error=${now.error} />`}`;
}

/** Whether two sets are equal, or by how many grey levels they differ. @param {string} one @param {string} other */
async function compare(one, other) {
  const [a, b] = await Promise.all([pixels(one), pixels(other)]);
  if (a.width !== b.width || a.height !== b.height) return `Its canvas differs: ${b.width} × ${b.height} px.`;
  let most = 0;
  for (let n = 0; n < a.data.length; n += 1) most = Math.max(most, Math.abs(a.data[n] - b.data[n]));
  return most ? `It differs by up to ${most} grey level${most > 1 ? "s" : ""} of 255.` : "It is equal, pixel for pixel.";
}

async function pixels(/** @type {string} */ id) {
  const picture = await createImageBitmap(await pictureAt(url(`sets/${id}/composite.png`)), { colorSpaceConversion: "none" });
  const drawn = new OffscreenCanvas(picture.width, picture.height).getContext("2d");
  if (!drawn) throw new Error("no canvas");
  drawn.drawImage(picture, 0, 0);
  return drawn.getImageData(0, 0, picture.width, picture.height);
}

/** The set as a command and as a call. @param {{id: string, origin: any}} props */
function Copies({ id, origin }) {
  if (!origin) return null;
  const quoted = (/** @type {string} */ text) => `'${text.replace(/'/g, `'\\''`)}'`;
  const command = `iclora generate ${quoted(`${origin.path}/request.json`)}`;
  const body = quoted(JSON.stringify({ kind: "generate", input: { request: id } }));
  const curl = `curl ${quoted(url("jobs"))} -H "Authorization: Bearer $(cat .iclora/token)" -H 'Content-Type: application/json' -d ${body}`;
  return html`<div class="buttons copies">
    <button type="button" ...${by("set", "command")} onClick=${() => copy(command, "The command is copied; run it in the studio's folder")}>Copy as command</button>
    <button type="button" ...${by("set", "curl")} onClick=${() => copy(curl, "The call is copied; run it in the studio's folder")}>Copy as curl</button>
  </div>`;
}

async function copy(/** @type {string} */ text, /** @type {string} */ said) {
  try {
    await navigator.clipboard.writeText(text);
    note(said);
  } catch {
    window.prompt("Copy this", text);
  }
}
