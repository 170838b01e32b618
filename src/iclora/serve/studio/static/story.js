// @ts-check
// Story: a line an image. An image that is there stays; one that is not is made beside the others.
import { get, pictureAt, post, Problem, sendPicture, url } from "./api.js";
import { html, signal, useEffect, useRef } from "./lib.js";
import { Field, read } from "./forms.js";
import { by, step, useKeys } from "./keys.js";
import { kept } from "./kept.js";
import { listen } from "./live.js";
import { attempt, Icon, Picture, Progress, trouble, Wrong } from "./parts.js";
import { adapters, called, jobs, know, needForm, recipeOf, recipes } from "./state.js";
import { doing, done } from "./undo.js";

/**
 * @typedef {{key: string, words: string, sha?: string, job?: string, file?: string}} Line
 *   its picture is an asset (sha), or a file of the job that made it
 */

const fresh = () => Math.random().toString(36).slice(2, 9);
/** @returns {Line} */
const blank = (words = "") => ({ key: fresh(), words });
const store = kept("story", () => ({
  recipe: "", adapter: "", overview: "", lines: [blank(), blank(), blank()], pins: /** @type {string[]} */ ([]),
  values: /** @type {Record<string, string>} */ ({}), job: "", order: /** @type {string[]} */ ([]),
}));
const draft = store.now;
/** Put something into the story from another screen, once it was taken up. */
export const tell = { restore: store.restore, change: store.change, draft, blank };
const ready = signal(false);
const plan = signal(/** @type {any} */ (null));
const wrong = signal(/** @type {Record<string, Problem>} */ ({}));
const FIELDS = ["steps", "fresh", "mode", "resample"];

/** What asks of a story stands in the address of its picture. @param {Line} line */
const pictureOf = (line) => (line.sha ? url(`assets/${line.sha}`) : line.job ? url(`jobs/${line.job}/files/${line.file}`) : "");
const has = (/** @type {Line} */ line) => Boolean(line.sha || line.job);
const now = () => draft.value.lines;
const job = () => jobs.value.find((each) => each.id === draft.value.job);

/** @param {Line[]} lines @param {string} [step] */
const write = (lines, step) => store.change({ lines }, step);
const set = (/** @type {number} */ n, /** @type {Partial<Line>} */ values, /** @type {string} */ step = "") =>
  write(now().map((line, at) => (at === n ? { ...line, ...values } : line)), step || undefined);
const emptied = (/** @type {Line} */ { key, words }) => ({ key, words });

/** @param {number} from @param {number} to */
function move(from, to) {
  if (to < 0 || to >= now().length || from === to) return;
  const lines = [...now()];
  const [line] = lines.splice(from, 1);
  lines.splice(to, 0, line);
  write(lines, `Image ${from + 1} is now image ${to + 1}`);
  requestAnimationFrame(() => document.getElementById(`line-${line.key}`)?.focus());
}

/** Numbers of pinned images that the first canvas shows. */
const pinned = () => now().slice(0, plan.value?.panels ?? 9).flatMap((line, n) => (draft.value.pins.includes(line.key) ? [n + 1] : []));

let looks = 0;

/** Ask what the story comes to. */
async function look() {
  const mine = ++looks;
  const { recipe, adapter, overview, values } = draft.value;
  if (!recipe) return null;
  const many = Number(values.fresh);
  try {
    const found = await post("preview/story", {
      recipe, adapter: adapter || null, overview, images: now().map((line) => line.words), anchor: pinned(),
      fresh: Number.isInteger(many) && many > 0 ? many : null, given: now().flatMap((line, n) => (has(line) ? [n + 1] : [])),
    });
    // An earlier story may be answered later.
    if (mine === looks) plan.value = found;
    return found;
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    if (mine === looks) plan.value = null;
    return null;
  }
}

/** The hash of a line's picture, which is sent if a job made it. @param {Line} line */
async function hashOf(line) {
  if (line.sha) return line.sha;
  const picture = await pictureAt(pictureOf(line)).catch((error) => {
    throw error.status === 404 ? new Problem(404, { problem: "a picture of this story is gone", advice: "Make it again." }) : error;
  });
  return (await sendPicture(new File([picture], "image.png", { type: "image/png" }))).sha256;
}

/** Make what is not there. */
async function begin() {
  wrong.value = {};
  // Lines may be moved while the server is asked; the job is about these.
  const lines = now();
  const anchor = pinned();
  const { recipe, adapter, values } = draft.value;
  const found = await look();
  const { input, wrong: bad } = read(values, "extend");
  if (found?.problem || !found) {
    requestAnimationFrame(() => /** @type {HTMLElement | null} */ (document.querySelector('.story [aria-invalid="true"]'))?.focus());
    return;
  }
  if (Object.keys(bad).length) {
    wrong.value = Object.fromEntries(Object.entries(bad).map(([name, problem]) => [name, new Problem(422, { problem })]));
    return;
  }
  try {
    const given = Object.fromEntries(await Promise.all(lines.map(async (line, n) => [n + 1, has(line) ? await hashOf(line) : ""])));
    for (const [number, sha] of Object.entries(given)) if (!sha) delete given[number];
    const posted = await post("jobs", { kind: "extend", input: {
      ...input, story: found.text, recipe, ...(adapter ? { adapter: [adapter] } : {}), ...(anchor.length ? { anchor } : {}), given,
    } }, { "Idempotency-Key": crypto.randomUUID() });
    know(posted);
    store.change({ job: posted.id, order: lines.map((line) => line.key) });
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    wrong.value = { [error.setting ?? ""]: error };
  }
}

/** Make one image again; the others stay. @param {number} n */
function again(n) {
  set(n, { sha: undefined, job: undefined, file: undefined }, `Image ${n + 1} is made again`);
  begin();
}

/** Take in the images that the job has made so far. @param {string} id */
async function take(id) {
  try {
    const { files } = await get(`jobs/${id}/files`);
    const there = new Set(files.filter((/** @type {string} */ name) => /^\d+\.png$/.test(name)));
    const { order, lines } = draft.value;
    const filled = lines.map((line) => {
      const at = order.indexOf(line.key);
      const file = `${String(at + 1).padStart(2, "0")}.png`;
      return at >= 0 && !has(line) && there.has(file) ? { ...line, job: id, file } : line;
    });
    if (filled.some((line, n) => line !== lines[n])) write(filled);
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
  }
}

export function Story() {
  const told = draft.value;
  const recipe = recipeOf(told.recipe);
  const at = job();
  useEffect(() => {
    Promise.all([store.restore(), needForm("extend")]).then(() => (ready.value = true), (error) => {
      if (!(error instanceof Problem)) throw error;
      trouble.value = error;
    });
  }, []);
  useKeys("story", { next: () => step(".line", 1), before: () => step(".line", -1),
    words: () => /** @type {HTMLElement | null} */ (document.activeElement?.closest(".line")?.querySelector("textarea"))?.focus() });
  useEffect(() => {
    if (!ready.value || recipe || !recipes.value.length) return;
    const own = recipes.value.find((each) => each.name === "toyland-storyboard");
    store.change({ recipe: (own ?? recipeOf("film-storyboard") ?? recipes.value[0]).name });
  }, [ready.value, recipe, recipes.value]);
  useEffect(() => {
    const timer = setTimeout(look, 350);
    return () => clearTimeout(timer);
  }, [JSON.stringify([told.lines, told.overview, told.recipe, told.adapter, told.pins, told.values.fresh]), ready.value]);
  useEffect(() => {
    if (!told.job) return undefined;
    take(told.job);
    return listen((type, data) => ["preview", "reset"].includes(type) && (!data.job || data.job === told.job) && take(told.job));
  }, [told.job, at?.status]);
  if (!ready.value || !recipe) return html`<p class="quiet story" role="status">Looking</p>`;
  const nothing = told.lines.every((line) => !line.words && !has(line)) && !told.overview;
  return html`<div class="story">
    <div class="head"><h1>Story</h1><p class="quiet">A line an image, as many as you like. Each canvas shows some images that are there already, so the story holds together.</p></div>
    <div class="pair">
      <div class="field"><label for="story-recipe">Recipe</label><select id="story-recipe" value=${told.recipe} onChange=${(/** @type {any} */ event) => store.change({ recipe: event.currentTarget.value })}>
        ${recipes.value.filter((each) => each.boxes.length > 1).map((each) => html`<option>${each.name}</option>`)}</select><${Wrong} error=${wrong.value.recipe} /></div>
      <div class="field"><label for="story-adapter">Adapter</label><select id="story-adapter" value=${told.adapter} onChange=${(/** @type {any} */ event) => store.change({ adapter: event.currentTarget.value })}>
        <option value="">the base alone</option>${adapters.value.map((each) => html`<option value=${each.id}>${called(each.id)}</option>`)}</select><${Wrong} error=${wrong.value.adapter} /></div>
    </div>
    ${nothing && html`<p class="offer">Not sure how to begin?<button type="button" ...${by("story", "example")} onClick=${() => example(recipe)}>Take a story of five</button></p>`}
    <div class="field"><label for="story-all">All images</label><${Words} id="story-all" value=${told.overview} bad=${plan.value?.line === 0 && !nothing && wrote()} placeholder="What all images share: who, where, the style" onInput=${(/** @type {string} */ overview) => store.change({ overview })} />
      ${plan.value?.line === 0 && wrote() && html`<${Wrong} error=${plan.value.problem} />`}</div>
    <ol class="lines">${told.lines.map((line, n) => html`<${Row} key=${line.key} line=${line} n=${n} />`)}</ol>
    <div class="buttons"><button type="button" ...${by("story", "add")} onClick=${() => { const line = blank(); write([...now(), line]); requestAnimationFrame(() => document.getElementById(`words-${line.key}`)?.focus()); }}>Add an image</button></div>
    <${Start} />
    <details><summary>More settings</summary><div class="pair">${FIELDS.map((name) => html`<${Field} key=${name} form="extend" name=${name} value=${told.values[name] ?? ""} error=${wrong.value[name]}
      onValue=${(/** @type {string} */ text) => store.change({ values: { ...told.values, [name]: text } })} />`)}</div></details>
  </div>`;
}

/** True once anything was written, so that nobody is told off at the start. */
const wrote = () => now().some((line) => line.words);

/** The recipe's example with two lines more. @param {import("./state.js").Recipe} recipe */
function example(recipe) {
  const parts = recipe.example.replace(recipe.prefix, "").split(/\[[^\[\]\n]{1,40}\]/).map((part) => part.trim());
  const [overview, ...words] = parts;
  const more = [...words, ...words].slice(0, Math.max(5, words.length));
  store.change({ overview, lines: more.map((text) => blank(text)) }, "A story is filled in");
}

/** Words that are as high as they are long. @param {{id: string, value: string, bad?: boolean, placeholder?: string, onInput: (text: string) => void}} props */
function Words({ id, value, bad = false, placeholder = "", onInput }) {
  const ref = useRef(/** @type {any} */ (null));
  useEffect(() => {
    ref.current.style.height = "auto";
    ref.current.style.height = `${ref.current.scrollHeight + 2}px`;
  }, [value]);
  return html`<textarea id=${id} ref=${ref} rows="2" maxlength="4000" value=${value} placeholder=${placeholder} aria-invalid=${bad}
    onInput=${(/** @type {any} */ event) => onInput(event.currentTarget.value.replace(/\n/g, " "))}></textarea>`;
}

/** One image and its words. @param {{line: Line, n: number}} props */
function Row({ line, n }) {
  const all = now();
  const found = plan.value;
  const number = n + 1;
  const window = found?.windows.find((/** @type {any} */ each) => each.made.includes(number));
  const shares = window && window.images.filter((/** @type {number} */ each) => each !== number);
  const problem = found?.line === number && wrote() ? found.problem : null;
  const first = n < (found?.panels ?? 9);
  const pin = draft.value.pins.includes(line.key);
  const at = job();
  const busy = !has(line) && at && at.ended === null && draft.value.order.includes(line.key);
  const choose = (/** @type {any} */ event) => {
    const file = event.currentTarget.files[0];
    event.currentTarget.value = "";
    if (file) give(n, file);
  };
  const drop = (/** @type {DragEvent} */ event) => {
    event.preventDefault();
    const other = event.dataTransfer?.getData("text/line");
    if (other) move(all.findIndex((each) => each.key === other), n);
    else if (event.dataTransfer?.files[0]) give(n, event.dataTransfer.files[0]);
  };
  const keys = (/** @type {KeyboardEvent} */ event) => {
    if (event.target !== event.currentTarget || event.altKey || !["ArrowUp", "ArrowDown"].includes(event.key)) return;
    event.preventDefault();
    step(".line", event.key === "ArrowUp" ? -1 : 1);
  };
  return html`<li id=${`line-${line.key}`} class=${`line ${pin && first ? "pinned" : ""}`} data-acts tabindex="0" aria-label=${`Image ${number}; Alt and up or down moves it`} onKeyDown=${keys}
    draggable=${true} onDragStart=${(/** @type {DragEvent} */ event) => event.target === event.currentTarget && event.dataTransfer?.setData("text/line", line.key)}
    onDragOver=${(/** @type {DragEvent} */ event) => event.preventDefault()} onDrop=${drop}>
    <div class="image" style=${{ aspectRatio: found ? `${found.width} / ${found.height}` : "1" }}>
      ${has(line) ? html`<${Picture} draggable=${false} src=${pictureOf(line)} alt=${`Image ${number}: ${line.words}`} />` : html`<span class="quiet">${busy ? "is made" : "will be made"}</span>`}
      <b>${number}</b></div>
    <div class="of">
      <label class="unseen" for=${`words-${line.key}`}>Words of image ${number}</label>
      <${Words} id=${`words-${line.key}`} value=${line.words} bad=${Boolean(problem)} placeholder=${`What image ${number} shows`} onInput=${(/** @type {string} */ words) => set(n, { words })} />
      <${Wrong} error=${problem} />
      <${Wrong} error=${wrong.value[`line ${line.key}`]} />
      <div class="buttons">
        ${has(line) && html`<button type="button" aria-label=${`Make image ${number} again`} disabled=${Boolean(at && at.ended === null)} ...${by("story", "again")} onClick=${() => again(n)}><${Icon} name="again" /> Again</button>`}
        <label class="button" title=${by("story", "choose").title}><input type="file" ...${by("story", "choose")} accept="image/*,.heic,.tif,.tiff" class="unseen" aria-label=${`Choose a picture for image ${number}`} onChange=${choose} /><${Icon} name="picture" /></label>
        ${has(line) && html`<button type="button" aria-label=${`Take the picture of image ${number} away`} ...${by("story", "empty")} onClick=${() => write(all.map((each, i) => (i === n ? emptied(each) : each)), `Image ${number} is empty again`)}><${Icon} name="close" /></button>`}
        ${first && html`<button type="button" aria-pressed=${pin} ...${by("story", "pin", "Stays in view on every canvas")} aria-label=${`Pin image ${number}`} onClick=${() => store.change({ pins: pin ? draft.value.pins.filter((key) => key !== line.key) : [...draft.value.pins, line.key] })}><${Icon} name=${pin ? "lock" : "open"} /> ${pin ? "pinned" : "Pin"}</button>`}
        <button type="button" aria-label=${`Move image ${number} up`} ...${by("story", "up")} disabled=${n === 0} onClick=${() => move(n, n - 1)}><${Icon} name="up" /></button>
        <button type="button" aria-label=${`Move image ${number} down`} ...${by("story", "down")} disabled=${n === all.length - 1} onClick=${() => move(n, n + 1)}><${Icon} name="down" /></button>
        <button type="button" aria-label=${`Remove image ${number}`} ...${by("story", "out")} disabled=${all.length === 1} onClick=${() => write(all.filter((_, i) => i !== n), `Image ${number} is removed`)}><${Icon} name="trash" /></button>
        ${shares && !busy && html`<span class="quiet">on a canvas with ${shares.join(", ")}</span>`}
      </div></div></li>`;
}

/** Give an image a picture. @param {number} n @param {Blob} file */
const give = (n, file) => {
  const { key } = now()[n];
  const { [`line ${key}`]: _, ...others } = wrong.value;
  wrong.value = others;
  return attempt(async () => {
    const { sha256 } = await sendPicture(file);
    // Lines may have been moved meanwhile.
    const at = now().findIndex((line) => line.key === key);
    if (at >= 0) set(at, { sha: sha256, job: undefined, file: undefined }, `Image ${at + 1} is given`);
  }, (problem) => (wrong.value = { ...wrong.value, [`line ${key}`]: problem }));
};

function Start() {
  const at = job();
  const found = plan.value;
  const missing = now().filter((line) => !has(line)).length;
  const general = found?.problem && found.line === null && wrote() && missing ? found.problem : null;
  const canvases = (found?.windows ?? []).filter((/** @type {any} */ each) => each.made.length).length;
  const live = at && at.ended === null;
  return html`<div class="start">
    ${general && html`<${Wrong} error=${general} />`}
    ${Object.entries(wrong.value).filter(([name]) => ![...FIELDS, "recipe", "adapter"].includes(name) && !name.startsWith("line ")).map(([name, error]) => html`<${Wrong} key=${name} error=${error} />`)}
    ${at?.error && html`<${Wrong} error=${at.error} />`}
    <div class="buttons">
      ${!live && (at?.status === "cancelled" || at?.status === "failed") && missing > 0
        && html`<button type="button" class="main" ...${by("story", "make")} onClick=${() => attempt(async () => know(await post(`jobs/${at.id}/retry`)))}>Go on</button>`}
      ${!live && html`<button type="button" class=${at?.status === "cancelled" ? "" : "main"} disabled=${!missing} ...${by("story", "make")} onClick=${begin}>${missing === now().length ? "Make the story" : missing ? `Make the missing ${missing === 1 ? "image" : `${missing} images`}` : "All images are there"}</button>`}
      ${live && html`<${Progress} job=${at} /><button type="button" disabled=${at.status === "cancelling"} ...${by("story", "stop")} onClick=${() => attempt(() => doing(async () => {
        know(await post(`jobs/${at.id}/cancel`));
        done("Stopped; what is made stays", async () => know(await post(`jobs/${at.id}/retry`)));
      }))}>Stop</button>`}
      ${!live && missing > 0 && canvases > 0 && html`<span class="quiet">${canvases} canvas${canvases === 1 ? "" : "es"}</span>`}
    </div></div>`;
}
