// @ts-check
// Datasets that are dropped or chosen: a folder file by file, a zip in pieces.
import { call, place as server, post, Problem } from "./api.js";
import { by } from "./keys.js";
import { effect, html, signal, useEffect } from "./lib.js";
import { openPicture } from "./opened.js";
import { Bar, Icon, Wrong } from "./parts.js";
import { go } from "./route.js";
import { recipes } from "./state.js";
import { loadDatasets, place } from "./data.js";

/**
 * @typedef {{path: string, file: File}} Item
 * @typedef {{name: string, recipe: string, own: boolean, items: Item[], left: number, upload: string, sent: number,
 *   busy: boolean, error: Problem | null, count: number, what: string}} Pending
 */

/** What was dropped and is not a dataset yet. */
export const pending = signal(/** @type {Pending | null} */ (null));
export const over = signal(false);

const PIECE = 16e6;
const READ = /\.(png|jpe?g|webp|tiff?|bmp|jfif|jpe|dib|avif|hei[cf]|hif|txt|caption|json|jsonl|csv|toml|zip)$/i;
const PICTURE = /\.(png|jpe?g|webp|tiff?|bmp|jfif|jpe|dib|avif|hei[cf]|hif)$/i;
const HIDDEN = /(^|\/)(\.|__MACOSX\/|Thumbs\.db$|desktop\.ini$)/i;

/** Every file below what was dropped. @param {DataTransfer} from @returns {Promise<Item[]>} */
export async function dropped(from) {
  const entries = [...from.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return [...from.files].map((file) => ({ path: file.name, file }));
  /** @type {Item[]} */
  const found = [];
  const walk = async (/** @type {any} */ entry) => {
    if (entry.isFile) {
      const file = await new Promise((yes, no) => entry.file(yes, no));
      found.push({ path: entry.fullPath.replace(/^\//, ""), file });
      return;
    }
    const reader = entry.createReader();
    // A reader gives a hundred at a time.
    for (;;) {
      const some = await new Promise((yes, no) => reader.readEntries(yes, no));
      if (!some.length) return;
      for (const each of some) await walk(each);
    }
  };
  for (const entry of entries) await walk(entry);
  return found;
}

const safe = (/** @type {string} */ text) => text.replace(/\.zip$/i, "").replace(/[^A-Za-z0-9._-]+/g, "-").replace(/^[^A-Za-z0-9]+/, "").slice(0, 60);

/** What is left of it over a reload: files cannot be, unless the server has them all. */
const KEPT = `iclora upload ${server}`;
/** A new dataset that a reload has cut off. */
export const cut = signal(/** @type {{name: string, count: number} | null} */ (null));

/** Take up what a reload has left. */
export function restoreUpload() {
  const left = JSON.parse(localStorage.getItem(KEPT) ?? "null");
  if (!left || pending.value) return;
  if (left.upload) pending.value = { ...left, items: [], left: 0, sent: 1, busy: false, error: null };
  else cut.value = left;
}

effect(() => {
  const now = pending.value;
  // An upload that was cut off stays said until somebody has put it away.
  if (!now && cut.value) return;
  if (now) localStorage.setItem(KEPT, JSON.stringify({ name: now.name, own: now.own, recipe: now.recipe, upload: now.upload, count: now.count, what: now.what }));
});

/** Nothing waits to be a dataset. */
function forget() {
  pending.value = cut.value = null;
  localStorage.removeItem(KEPT);
}

/** Says what a reload has cut off. */
export function CutOff() {
  const now = cut.value;
  if (!now || pending.value) return null;
  return html`<${Wrong} onClose=${forget} error=${new Problem(0, { problem: `the new dataset ${now.name} was cut off by a reload, before all its ${now.count} pictures were sent`, advice: "Drop or choose the folder or zip again: a browser does not give files back." })} />`;
}

/** Take files up, to be named. @param {Item[]} all */
export function take(all) {
  const items = all.filter(({ path }) => READ.test(path) && !HIDDEN.test(path));
  const left = all.filter(({ path }) => !HIDDEN.test(path)).length - items.length;
  const zips = items.filter(({ path }) => /\.zip$/i.test(path));
  /** @type {Problem | null} */
  let error = null;
  if (!items.length) error = new Problem(422, { problem: "there is no picture in it", advice: "Drop a folder of image sets, or a zip of one." });
  else if (zips.length && items.length > 1) error = new Problem(422, { problem: "a zip lies beside other files", advice: "Drop the zip alone, or a folder without zips." });
  const own = items.some(({ path }) => /(^|\/)iclora\.toml$/.test(path));
  const name = safe(items[0]?.path.split("/")[0] ?? "") || "sets";
  const count = items.filter(({ path }) => PICTURE.test(path)).length;
  cut.value = null;
  pending.value = { name, own, recipe: own || zips.length ? "" : guess(items), items, left, upload: "", sent: 0, busy: false, error, count, what: zips.length ? items[0].file.name : `${count} pictures` };
}

/** The recipe of as many panels as the first folder has pictures. @param {Item[]} items */
function guess(items) {
  /** @type {Record<string, number>} */
  const counts = {};
  for (const { path } of items) if (PICTURE.test(path)) counts[path.replace(/[^/]*$/, "")] = (counts[path.replace(/[^/]*$/, "")] ?? 0) + 1;
  const first = Object.values(counts)[0] ?? 0;
  const fits = recipes.value.filter((recipe) => recipe.boxes.length === first);
  return (fits.find((recipe) => /storyboard|portrait-photo/.test(recipe.name) && !recipe.name.startsWith("toyland")) ?? fits[0])?.name ?? "";
}

const say = (/** @type {Partial<Pending>} */ values) => pending.value && (pending.value = { ...pending.value, ...values });

async function send() {
  const now = pending.value;
  if (!now || now.busy) return;
  say({ busy: true, error: null });
  try {
    let { upload } = now;
    if (!upload) {
      upload = (await post("uploads")).id;
      say({ sent: 0 });
      const path = (/** @type {string} */ query = "") => `uploads/${upload}/files${query}`;
      if (/\.zip$/i.test(now.items[0].path)) await sendZip(now.items[0].file, path);
      else await sendFiles(now.items, path);
      say({ upload });
    }
    const { id } = await post(`uploads/${upload}/finish`, { name: now.name, recipe: now.recipe || null });
    forget();
    await loadDatasets();
    go(place(id));
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    say({ error });
  } finally {
    say({ busy: false });
  }
}

/** @param {File} file @param {(query?: string) => string} path */
async function sendZip(file, path) {
  for (let offset = 0; offset < file.size; offset += PIECE) {
    const form = new FormData();
    form.append("files", file.slice(offset, offset + PIECE), "sets.zip");
    await call("POST", path(`?offset=${offset}`), form);
    say({ sent: Math.min(1, (offset + PIECE) / file.size) });
  }
}

/** @param {Item[]} items @param {(query?: string) => string} path */
async function sendFiles(items, path) {
  const total = items.reduce((sum, { file }) => sum + file.size, 0) || 1;
  let sent = 0;
  for (let at = 0; at < items.length; ) {
    const form = new FormData();
    let size = 0;
    let count = 0;
    do {
      form.append("files", items[at].file, items[at].path);
      size += items[at].file.size;
      at += 1;
      count += 1;
    } while (at < items.length && count < 100 && size + items[at].file.size < PIECE);
    await call("POST", path(), form);
    sent += size;
    say({ sent: sent / total });
  }
}

function drop() {
  const now = pending.value;
  forget();
  if (now?.upload) call("DELETE", `uploads/${now.upload}`).catch(() => {});
}

/** Hear of what is dropped anywhere on the screen. */
export function useDrop() {
  useEffect(() => {
    const has = (/** @type {DragEvent} */ event) => event.dataTransfer?.types.includes("Files");
    const onOver = (/** @type {DragEvent} */ event) => {
      if (!has(event)) return;
      event.preventDefault();
      over.value = true;
    };
    const leave = (/** @type {DragEvent} */ event) => !event.relatedTarget && (over.value = false);
    const onDrop = async (/** @type {DragEvent} */ event) => {
      over.value = false;
      if (!has(event) || event.defaultPrevented || !event.dataTransfer) return;
      event.preventDefault();
      const items = await dropped(event.dataTransfer);
      const [only, ...others] = items;
      if (only && !others.length && /^[^/]*\.png$/i.test(only.path) && (await openPicture(only.file))) return;
      take(items);
    };
    // Not the window: what is dropped anywhere else is heard there, after this.
    document.addEventListener("dragover", onOver);
    document.addEventListener("dragleave", leave);
    document.addEventListener("drop", onDrop);
    return () => {
      document.removeEventListener("dragover", onOver);
      document.removeEventListener("dragleave", leave);
      document.removeEventListener("drop", onDrop);
    };
  }, []);
}

/** Buttons beside the drop. */
export function Choose() {
  const chosen = (/** @type {any} */ event) => {
    const files = /** @type {File[]} */ ([...event.currentTarget.files]);
    event.currentTarget.value = "";
    if (files.length) take(files.map((file) => ({ path: file.webkitRelativePath || file.name, file })));
  };
  return html`<div class="buttons">
    <label class="button"><input type="file" class="unseen" webkitdirectory ...${by("sets", "folder")} aria-label="Choose a folder of sets" onChange=${chosen} /><${Icon} name="folder" /> Choose a folder</label>
    <label class="button"><input type="file" class="unseen" accept=".zip,application/zip" ...${by("sets", "zip")} aria-label="Choose a zip of sets" onChange=${chosen} /><${Icon} name="picture" /> Choose a zip</label>
  </div>`;
}

/** What was dropped: what it is called, which recipe its sets follow. */
export function NewDataset() {
  const now = pending.value;
  if (!now) return null;
  const at = (/** @type {string} */ name) => (now.error?.setting === name ? now.error : null);
  const elsewhere = now.error && !["name", "recipe"].includes(now.error.setting ?? "") ? now.error : null;
  const zip = /\.zip$/i.test(now.what);
  return html`<form class="arrives" onSubmit=${(/** @type {Event} */ event) => { event.preventDefault(); send(); }}>
    <h2>A new dataset</h2>
    <p class="quiet">${now.what}${now.upload ? ", on the server already" : ""}${now.left ? `, ${now.left} other files are left out` : ""}</p>
    <div class="pair">
      <div class="field"><label for="new-name">Name</label>
        <input id="new-name" value=${now.name} required pattern="[A-Za-z0-9][A-Za-z0-9._\\-]{0,63}" aria-invalid=${Boolean(at("name"))} autocomplete="off" spellcheck="false"
          onInput=${(/** @type {any} */ event) => say({ name: event.currentTarget.value })} />
        <${Wrong} error=${at("name")} /></div>
      <div class="field"><label for="new-recipe">Recipe</label>
        <select id="new-recipe" value=${now.recipe} aria-invalid=${Boolean(at("recipe"))} onChange=${(/** @type {any} */ event) => say({ recipe: event.currentTarget.value, error: null })}>
          <option value="">${now.own || zip ? "as its iclora.toml says" : "choose one"}</option>
          ${recipes.value.map((each) => html`<option value=${each.name}>${each.name}, ${each.boxes.length} panels</option>`)}
        </select>
        <${Wrong} error=${at("recipe")} /></div>
    </div>
    <${Wrong} error=${elsewhere} />
    <div class="buttons">
      <button class="main" disabled=${now.busy || (!now.items.length && !now.upload) || (elsewhere?.status === 422 && !now.upload)}>Add it</button>
      <button type="button" onClick=${drop} disabled=${now.busy}>Leave it</button>
      ${now.busy && html`<span role="status"><${Bar} value=${now.sent} max=${1} label="sent" /> <span class="quiet">${now.sent < 1 ? `${Math.round(100 * now.sent)}% sent` : "reading it"}</span></span>`}
    </div>
  </form>`;
}
