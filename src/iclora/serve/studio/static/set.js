// @ts-check
// One made set: its panels, how it was made, where it is from, and what can be done with it.
import { get, pictureAt, post, Problem, url } from "./api.js";
import { html, useEffect, useState } from "./lib.js";
import { bind } from "./keys.js";
import { fill } from "./draft.js";
import { beside, restore, star, trash } from "./made.js";
import { draftOf, givenIn, wordsOf } from "./making.js";
import { compareWith, sendToStory } from "./marks.js";
import { attempt, Icon, Picture, Progress, Prompt, Wrong } from "./parts.js";
import { go, route } from "./route.js";
import { jobs, know, setsChanged } from "./state.js";
import { note } from "./undo.js";
import { ago } from "./words.js";

/** @param {{id: string}} props */
export function OneSet({ id }) {
  const [one, setOne] = useState(/** @type {any} */ (null));
  const [request, setRequest] = useState(/** @type {any} */ (null));
  const [origin, setOrigin] = useState(/** @type {any} */ (null));
  const [missing, setMissing] = useState(/** @type {Problem | null} */ (null));
  useEffect(() => {
    get(`sets/${id}`).then(setOne, (error) => error.status === 404 && setMissing(error));
  }, [id, setsChanged.value]);
  useEffect(() => {
    get(`sets/${id}/request.json`).then(setRequest, () => {});
    get(`sets/${id}/origin`).then(setOrigin, () => {});
  }, [id]);
  const query = route.value.query.toString();
  const tail = query && `?${query}`;
  const leave = () => go(`gallery${tail}`);
  useEffect(() => bind({
    j: () => step(1), k: () => step(-1), ArrowRight: () => step(1), ArrowLeft: () => step(-1),
    s: () => void (one && star(one)),
    Delete: () => void (one && !one.trashed && trash(one, leave)),
    Escape: leave,
  }), [one]);
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
      <nav class="steps" aria-label="Sets"><a class="button bare" href=${`#/gallery${tail}`}><${Icon} name="back" /> Gallery</a>
        <span class="beside"><button type="button" class="bare" aria-pressed=${one.star} aria-label="Star" title="Star (s)" onClick=${() => star(one)}><${Icon} name="star" /></button>
        ${!one.trashed && html`<button type="button" class="bare" aria-label="Move to the trash" title="Move to the trash (Del)" onClick=${() => trash(one, leave)}><${Icon} name="trash" /></button>`}
        <button type="button" class="bare" aria-label="Set before (k)" disabled=${!beside(id, -1)} onClick=${() => step(-1)}><${Icon} name="back" /></button>
        <button type="button" class="bare" aria-label="Next set (j)" disabled=${!beside(id, 1)} onClick=${() => step(1)}><${Icon} name="next" /></button></span></nav>
      <h1 class="unseen">A set of ${one.panels} panels</h1>
      <p class="prompt"><${Prompt} text=${one.prompt} /></p>
      <div class="buttons">
        <button type="button" class="main" onClick=${change} disabled=${!request}>Change and make</button>
        <${Again} id=${id} />
        <button type="button" onClick=${() => compareWith(id)} title="Mark it with x in the gallery"><${Icon} name="pair" /> Compare</button>
        <button type="button" disabled=${!request} onClick=${() => sendToStory(id, boxes.map((/** @type {any} */ _, /** @type {number} */ n) => n + 1), wordsOf(id, request, origin))}><${Icon} name="story" /> To the story</button>
        <a class="button" href=${url(`sets.zip?id=${id}`)} download title="Pictures and request as a zip"><${Icon} name="down" /> Zip</a>
        ${one.trashed && html`<button type="button" onClick=${() => restore(one)}>Bring back</button>`}
      </div>
      <${Facts} one=${one} request=${request} origin=${origin} />
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
    ${origin?.made_of && html`<div><dt>Made of</dt><dd><a href=${`#/gallery/${origin.made_of}`}>another set</a>, panel ${origin.panels.join(", ")} again</dd></div>`}
  </dl>`;
}

/** Make the same set again, and say whether it is the same. @param {{id: string}} props */
function Again({ id }) {
  const [verdict, setVerdict] = useState("");
  // The newest one that asked for this set, so that a page that was reloaded meanwhile says it, too.
  const now = jobs.value.filter((each) => each.kind === "generate" && each.input.request === id).sort((a, b) => b.created - a.created)[0];
  const made = now?.result?.sets?.[0];
  useEffect(() => {
    setVerdict("");
    if (now?.status === "succeeded" && made) compare(id, made).then(setVerdict, (error) => {
      // What was made may be gone since.
      if (!(error instanceof Problem)) throw error;
    });
  }, [now?.status, made]);
  const begin = () => attempt(async () => know(await post(`sets/${id}/reproduce`)));
  return html`<button type="button" onClick=${begin} disabled=${Boolean(now && now.ended === null)}><${Icon} name="again" /> Make again</button>
    <span class="verdict" role="status">${now && now.ended === null && html`<${Progress} job=${now} />`}
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
    <button type="button" onClick=${() => copy(command, "The command is copied; run it in the studio's folder")}>Copy as command</button>
    <button type="button" onClick=${() => copy(curl, "The call is copied; run it in the studio's folder")}>Copy as curl</button>
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
