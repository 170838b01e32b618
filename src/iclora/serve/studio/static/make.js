// @ts-check
// Make: the recipe's layout with its panels as slots, words beside it, and what comes of them.
import { post, Problem, url } from "./api.js";
import { html, useEffect } from "./lib.js";
import { change, draft, fill, prompt, write, wrong } from "./draft.js";
import { Setting, schemaOf } from "./forms.js";
import { by, press, useKeys } from "./keys.js";
import { follow, followed, givenIn, know_request, last, left, look, make, makeOthers, preview, show, shownRequest, wordsOf } from "./making.js";
import { Idea } from "./idea.js";
import { compareWith, sendToStory } from "./marks.js";
import { Area, attempt, Picture, plain, Progress, Wrong } from "./parts.js";
import { current, focusSlot, Slots } from "./slots.js";
import { adapters, called, know, recipeOf, recipes, usualSeconds } from "./state.js";
import { join, lasting, split, spoken } from "./words.js";

/** @typedef {import("./state.js").Recipe} Recipe */

const MORE = ["guidance", "strength", "size", "text", "resample", "boost", "resample_from", "negative"];

export function Make() {
  const now = draft.value;
  const recipe = recipeOf(now.recipe);
  const job = followed.value;
  useEffect(() => {
    // The embedded base paints no other recipes; elsewhere the paper's first task is as good as any.
    if (!recipe && recipes.value.length) {
      const own = recipes.value.find((each) => each.name === "toyland-storyboard");
      change({ recipe: (own ?? recipeOf("film-storyboard") ?? recipes.value[0]).name });
    }
  }, [recipe, recipes.value]);
  useEffect(() => void know_request(now.shown), [now.shown]);
  useEffect(follow, [job?.status, job?.ended]);
  useEffect(() => {
    const timer = setTimeout(look, 350);
    return () => clearTimeout(timer);
  }, [prompt(now), now.recipe, now.adapter, now.values.size, JSON.stringify(now.given)]);
  // Of the panel that had the focus last.
  const slot = (/** @type {string} */ does) => () => void press(`make ${does}`, document.getElementById(`slot-${current.value}`));
  const made = (/** @type {number} */ step) => {
    const to = now.made[now.made.indexOf(now.shown) + step];
    if (to) show(to);
  };
  useKeys("make", {
    panel: focusSlot, first: () => void make(true),
    words: () => document.getElementById(now.way === "text" ? "words" : `words-${current.value}`)?.focus(),
    ...Object.fromEntries(["again", "keep", "use", "tell", "versions", "choose", "away", "request"].map((does) => [does, slot(does)])),
    next: () => made(1), before: () => made(-1), way: () => swap(now.way === "text" ? "panels" : "text"),
    idea: () => document.getElementById("idea")?.focus(),
  });
  if (!recipe) return html`<p class="quiet">There is no recipe yet.</p>`;
  const seen = shownRequest.value;
  const given = givenIn(seen);
  const notes = Object.fromEntries((preview.value?.panels ?? []).map((/** @type {any} */ each) => [each.panel, each]));
  const drawn = seen?.layout ?? (preview.value?.boxes.length === recipe.boxes.length ? preview.value : recipe);
  // What was given to a made set is not drawn as made, and cannot be made again alone.
  const canvas = { ...drawn, markers: recipe.markers, notes, set: seen ? now.shown : "", given };
  return html`<div class=${`make ${canvas.height > canvas.width ? "tall" : ""}`}>
    <section class="stage" aria-label="Panels">
      <${Slots} canvas=${canvas} />
      <${Below} canvas=${canvas} />
    </section>
    <section class="side" aria-label="What it shows">
      <${Task} recipe=${recipe} />
      <${Words} recipe=${recipe} />
      <${Start} seen=${seen} />
      <${Numbers} />
    </section>
  </div>`;
}

/** Recipe and adapter. @param {{recipe: Recipe}} props */
function Task({ recipe }) {
  const now = draft.value;
  const pick = (/** @type {any} */ event) => {
    const other = recipeOf(event.currentTarget.value);
    if (!other) return;
    wrong.value = {};
    const { size: _, ...values } = now.values;
    const given = Object.fromEntries(Object.entries(now.given).filter(([panel]) => Number(panel) <= other.boxes.length));
    // Words go along by panel, so that those of further panels are there when one comes back.
    const words = prompt(now) === recipe.example.trim() ? { overview: "", panels: [], text: "", way: /** @type {const} */ ("panels") } : reworded(recipe, other);
    change({ recipe: other.name, shown: "", keep: [], seeds: {}, values, given, ...words });
  };
  return html`<div class="pair">
    <div class="field">
      <label for="recipe">Recipe</label>
      <select id="recipe" value=${now.recipe} onChange=${pick} aria-describedby="recipe-help">
        ${recipes.value.map((each) => html`<option>${each.name}</option>`)}
      </select>
      <${Wrong} error=${wrong.value.recipe} />
    </div>
    <div class="field">
      <label for="adapter">Adapter</label>
      <select id="adapter" value=${now.adapter} onChange=${(/** @type {any} */ event) => {
        wrong.value = {};
        change({ adapter: event.currentTarget.value });
      }}>
        <option value="">the base alone</option>
        ${adapters.value.map((each) => html`<option value=${each.id}>${called(each.id)}</option>`)}
      </select>
      <${Wrong} error=${wrong.value.adapter} />
    </div>
    <p class="help wide" id="recipe-help">${recipe.summary}</p>
  </div>`;
}

/** One text with the markers of another recipe, if it has those of its own. */
function reworded(/** @type {Recipe} */ recipe, /** @type {Recipe} */ other) {
  const now = draft.value;
  const parts = now.way === "text" && split(recipe, now.text);
  return parts ? { text: join(other, parts.overview, parts.panels) } : {};
}

/** Write by panel or as one text. @param {"panels" | "text"} way */
function swap(way) {
  if (write(way)) return;
  const problem = "these words do not have the recipe's markers in order, so they stay one text";
  wrong.value = { ...wrong.value, prompt: new Problem(422, { problem, advice: "Write each of the markers below once, in their order." }) };
}

/** The joint prompt. @param {{recipe: Recipe}} props */
function Words({ recipe }) {
  const now = draft.value;
  const error = wrong.value.prompt ?? said();
  const typed = (/** @type {any} */ values) => {
    const { prompt: _, ...others } = wrong.value;
    wrong.value = others;
    change(values);
  };
  const empty = !prompt(now);
  return html`<fieldset class="words">
    <legend>Words</legend>
    <div class="switch" role="group" aria-label="How the words are written">
      ${/** @type {const} */ (["panels", "text"]).map((way) => html`<button type="button" aria-pressed=${now.way === way} title=${by("make", "way").title} onClick=${() => swap(way)}>
        ${way === "panels" ? "By panel" : "As one text"}</button>`)}
    </div>
    <${Idea} recipe=${recipe} />
    ${empty && html`<p class="offer">Not sure how to begin?
      <button type="button" ...${by("make", "example")} onClick=${() => fill(recipe.example, "The example is filled in")}>Take the example</button></p>`}
    ${now.way === "panels"
      ? html`<div class="field"><label for="words-0">All panels</label>
            <${Area} id="words-0" value=${now.overview} invalid=${Boolean(error)} describedby="words-wrong"
              placeholder="What all panels share" onInput=${(/** @type {string} */ overview) => typed({ overview })} /></div>
          ${recipe.markers.map((/** @type {string} */ marker, /** @type {number} */ n) => html`<div class="field" data-panel=${n + 1} key=${marker}>
            <label for=${`words-${n + 1}`}>${spoken(marker)}</label>
            <${Area} id=${`words-${n + 1}`} value=${now.panels[n] ?? ""} onInput=${(/** @type {string} */ text) => {
              const panels = recipe.markers.map((/** @type {string} */ _, /** @type {number} */ each) => now.panels[each] ?? "");
              panels[n] = text;
              typed({ panels });
            }} /></div>`)}`
      : html`<div class="field"><label for="words">Joint prompt</label>
          <${Area} id="words" rows=${8} value=${now.text} invalid=${Boolean(error)} describedby="words-wrong words-help"
            placeholder=${recipe.example} onInput=${(/** @type {string} */ text) => typed({ text })} />
          <p class="help" id="words-help">Markers: ${recipe.markers.join(" ")}</p></div>`}
    <${Wrong} error=${error} id="words-wrong" />
    ${(preview.value?.notes ?? []).map((/** @type {string} */ text) => html`<p class="help">${plain(text)}</p>`)}
    ${!empty && preview.value && html`<p class="help">about ${preview.value.tokens} tokens</p>`}
  </fieldset>`;
}

/** What the server says of the words while they are written. */
function said() {
  const problem = preview.value?.problem;
  const { way, panels } = draft.value;
  // Panels that have no words yet are not wrong while somebody writes.
  const open = way === "panels" && recipeOf(draft.value.recipe)?.markers.some((_, n) => !panels[n]?.trim());
  return !open && problem?.setting === "prompt" && prompt(draft.value) ? problem : null;
}

/** The buttons that begin, and what is on its way. @param {{seen: any}} props */
function Start({ seen }) {
  const now = draft.value;
  const count = Number(now.values.count) || 1;
  const each = usualSeconds(now.recipe);
  const kept = seen ? now.keep.length : 0;
  const others = seen ? left(seen, now.keep).length : 0;
  const given = preview.value?.problem?.setting === "given" ? preview.value.problem : null;
  const shownSettings = new Set(["prompt", "recipe", "adapter", "seed", "steps", "mode", "count", ...MORE]);
  const rest = Object.entries(wrong.value).filter(([name]) => !shownSettings.has(name) && !name.startsWith("slot"));
  return html`<div class="start">
    ${given && html`<${Wrong} error=${given} />`}
    ${rest.map(([name, error]) => html`<${Wrong} key=${name} error=${error} />`)}
    ${last.value && Object.keys(wrong.value).length > 0 && html`<p><button type="button" ...${by("make", "retry")} onClick=${() => attempt(async () => {
      const job = await post(`jobs/${last.value}/retry`);
      last.value = "";
      wrong.value = {};
      know(job);
      change({ follow: job.id });
    })}>Try it again</button></p>`}
    <div class="buttons">
      ${kept > 0 && others > 0 && html`<button type="button" class="main" ...${by("make", "others")} onClick=${makeOthers}>Make the other ${others === 1 ? "panel" : `${others} panels`} again</button>`}
      <button type="button" class=${kept > 0 ? "" : "main"} onClick=${() => make()} ...${by("make", "make")}>
        ${Object.keys(now.given).length ? (seen ? "Complete it another way" : "Complete the set") : count > 1 ? `Make ${count} sets` : seen ? "Make another set" : "Make the set"}</button>
      <span class="quiet">${each === null ? "How long it takes is known after the first" : `takes ${each * count < 1 ? "" : "about "}${lasting(each * count)}`}</span>
    </div>
    <${Following} />
  </div>`;
}

/** The job that Make waits for. */
function Following() {
  const job = followed.value;
  return html`<div class="following" aria-live="polite">
    ${job && job.ended === null && html`<${Progress} job=${job} />
      <button type="button" ...${by("make", "stop")} onClick=${() => attempt(async () => know(await post(`jobs/${job.id}/cancel`)))}>Cancel</button>`}
  </div>`;
}

/** Numbers of the settings; the usual ones first. */
function Numbers() {
  const more = MORE.filter((name) => schemaOf(name));
  const touched = more.some((name) => draft.value.values[name] || wrong.value[name]);
  const opened = Object.keys(draft.value.seeds).length > 0;
  return html`<div class="numbers">
    ${opened && html`<p class="offer">Seeds are those of the picture that was opened
      <button type="button" ...${by("make", "seeds")} onClick=${() => change({ seeds: {} }, "New seeds are drawn")}>Draw new ones</button></p>`}
    <div class="pair">
      <${Setting} name="seed" empty="drawn each time" />
      <${Setting} name="steps" />
      <${Setting} name="count" />
      <${Setting} name="mode" />
    </div>
    <details open=${touched}><summary>More settings</summary>
      <div class="pair">${more.map((name) => html`<${Setting} key=${name} name=${name} />`)}</div>
    </details>
  </div>`;
}

/** Below the panels: what is shown, and what was made before. @param {{canvas: import("./slots.js").Canvas}} props */
function Below({ canvas }) {
  const now = draft.value;
  return html`<div class="below">
    <p class="quiet size"><span>${canvas.width} × ${canvas.height} px</span>
      ${canvas.set && html`<a href=${`#/gallery/${canvas.set}`}>this set in the gallery</a>
        <button type="button" class="link" ...${by("make", "compare")} onClick=${() => compareWith(canvas.set)}>compare</button>
        <button type="button" class="link" ...${by("make", "tellAll")} onClick=${() => shownRequest.value && sendToStory(canvas.set, canvas.boxes.map((_, n) => n + 1), { ...wordsOf(canvas.set, shownRequest.value, {}), adapter: now.adapter })}>to the story</button>
        <button type="button" class="link" ...${by("make", "slots")} onClick=${() => show("")}>back to the slots</button>`}</p>
    ${now.made.length > 0 && html`<div class="strip" role="group" aria-label="Made here">
      ${now.made.map((id) => html`<button type="button" key=${id} aria-pressed=${id === now.shown} aria-label=${`Show set ${id.slice(0, 6)}`} onClick=${() => show(id)}>
        <${Picture} src=${url(`sets/${id}/thumb.webp`)} alt="" /></button>`)}
    </div>`}
  </div>`;
}
