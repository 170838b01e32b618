// @ts-check
// Gallery: made sets, the newest first.
import { url } from "./api.js";
import { html, useEffect, useRef } from "./lib.js";
import { by, step, useKeys } from "./keys.js";
import { beside, cursor, found, load, more, restore, star, trash } from "./made.js";
import { mark, marks } from "./marks.js";
import { Icon, Thumb } from "./parts.js";
import { refine, route } from "./route.js";
import { adapters, recipes, setsChanged } from "./state.js";
import { OneSet } from "./set.js";
import { ago, unmarked } from "./words.js";

/** @typedef {import("./state.js").MadeSet} MadeSet */

export function Gallery() {
  const { id, query } = route.value;
  // A set's address holds the filter, too, so that next and previous are those of the list.
  useEffect(() => void load(), [query.toString(), setsChanged.value]);
  return id ? html`<${OneSet} id=${id} key=${id} />` : html`<${List} />`;
}

function List() {
  const { query } = route.value;
  const field = useRef(/** @type {any} */ (null));
  const values = Object.fromEntries(query);
  const trashed = Boolean(query.get("trash"));
  const filtered = [...query.keys()].some((name) => name !== "trash");
  const set = (/** @type {string} */ name, /** @type {string} */ value) => refine({ ...values, [name]: value });
  const out = () => {
    const id = document.activeElement?.closest("[data-set]")?.getAttribute("data-set");
    const now = found.value?.find((each) => each.id === id);
    if (!now || now.trashed) return;
    const next = beside(now.id, 1) ?? beside(now.id, -1);
    trash(now, () => next && /** @type {any} */ (document.querySelector(`[data-set="${next.id}"] a`))?.focus());
  };
  useKeys("gallery", { next: () => step("[data-set]", 1, "a"), before: () => step("[data-set]", -1, "a"), search: () => field.current?.focus(), out });
  const sets = found.value;
  return html`<div class="gallery">
    <search class="filters">
      <label class="grow"><span class="unseen">Words</span>
        <input ref=${field} type="search" placeholder="Words in prompts and notes" value=${query.get("q") ?? ""}
          onInput=${(/** @type {any} */ event) => set("q", event.currentTarget.value)} /></label>
      <label><span class="unseen">Recipe</span><select value=${query.get("recipe") ?? ""} onChange=${(/** @type {any} */ event) => set("recipe", event.currentTarget.value)}>
        <option value="">every recipe</option>${recipes.value.map((each) => html`<option>${each.name}</option>`)}</select></label>
      ${adapters.value.length > 0 && html`<label><span class="unseen">Adapter</span><select value=${query.get("adapter") ?? ""} onChange=${(/** @type {any} */ event) => set("adapter", event.currentTarget.value)}>
        <option value="">every adapter</option>${adapters.value.map((each) => html`<option>${each.id}</option>`)}</select></label>`}
      <button type="button" aria-pressed=${Boolean(query.get("star"))} ...${by("gallery", "starred")} onClick=${() => set("star", query.get("star") ? "" : "1")}><${Icon} name="star" /> Starred</button>
      <button type="button" aria-pressed=${trashed} ...${by("gallery", "trash")} onClick=${() => set("trash", trashed ? "" : "1")}><${Icon} name="trash" /> Trash</button>
      ${marks.value.length > 0 && html`<a class="button" ...${by("gallery", "compare")} href=${`#/compare?sets=${marks.value.join(",")}`}>Compare ${marks.value.length} marked</a>
        <a class="button" ...${by("gallery", "zip")} href=${url(`sets.zip?${marks.value.map((id) => `id=${id}`).join("&")}`)} download><${Icon} name="down" /> Zip of ${marks.value.length}</a>`}
    </search>
    ${sets === null
      ? html`<p class="quiet" role="status">Looking</p>`
      : sets.length
        ? html`<ul class="cards">${sets.map((each) => html`<${Card} key=${each.id} one=${each} />`)}</ul>`
        : html`<${Nothing} filtered=${filtered} trashed=${trashed} />`}
    ${cursor.value && html`<${End} key=${cursor.value} />`}
  </div>`;
}

/** What to do where nothing is. @param {{filtered: boolean, trashed: boolean}} props */
function Nothing({ filtered, trashed }) {
  if (filtered) return html`<div class="nothing"><h2>No set is like that</h2>
    <button type="button" onClick=${() => refine({})}>Show all sets</button></div>`;
  if (trashed) return html`<div class="nothing"><h2>The trash is empty</h2><button type="button" onClick=${() => refine({})}>Show the gallery</button></div>`;
  return html`<div class="nothing"><h2>No set is made yet</h2><p class="quiet">What you make, here or by the command line, is shown here.</p>
    <a class="button main" href="#/make">Make the first</a></div>`;
}

/** The end of the list, which asks for more when it comes near. */
function End() {
  const ref = useRef(/** @type {any} */ (null));
  useEffect(() => {
    const near = new IntersectionObserver((all) => all.some((each) => each.isIntersecting) && more(), { rootMargin: "800px" });
    near.observe(ref.current);
    return () => near.disconnect();
  }, []);
  return html`<p class="end" ref=${ref}><button type="button" onClick=${more}>Show more</button></p>`;
}

/** @param {{one: MadeSet}} props */
function Card({ one }) {
  const query = route.value.query.toString();
  const marked = marks.value.includes(one.id);
  return html`<li class=${`card ${marked ? "marked" : ""}`} data-set=${one.id} data-acts>
    <a href=${`#/gallery/${one.id}${query && `?${query}`}`}><${Thumb} src=${url(`sets/${one.id}/thumb.webp`)} alt=${`Set: ${unmarked(one.prompt).slice(0, 80)}`} /></a>
    <div class="caption"><p>${unmarked(one.prompt)}</p><p class="quiet of-set"><span>${one.recipe}</span> <span>${ago(one.made)}</span></p></div>
    ${one.trashed
      ? html`<button type="button" class="corner" ...${by("gallery", "restore")} onClick=${() => restore(one)}>Bring back</button>`
      : html`<button type="button" class=${`corner star ${one.star ? "on" : ""}`} aria-pressed=${one.star} aria-label="Star" ...${by("gallery", "star")} onClick=${() => star(one)}><${Icon} name="star" /></button>`}
    ${!one.trashed && html`<button type="button" class=${`corner left ${marked ? "on" : ""}`} aria-pressed=${marked} aria-label="Mark to compare" ...${by("gallery", "mark")} onClick=${() => mark(one.id)}><${Icon} name="pair" /></button>`}
  </li>`;
}
