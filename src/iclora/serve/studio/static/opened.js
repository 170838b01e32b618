// @ts-check
// A picture of ours that is dropped opens what it was made of in Make.
import { get, Problem } from "./api.js";
import { fill, wrong } from "./draft.js";
import { by } from "./keys.js";
import { html } from "./lib.js";
import { draftOf } from "./making.js";
import { attempt, Icon, trouble } from "./parts.js";
import { go } from "./route.js";

const LONGEST = 2 ** 20;

/** A PNG's text of a key, as far as it is not compressed; null if it has none. @param {Blob} file @param {string} key */
async function textOf(file, key) {
  const head = new Uint8Array(await file.slice(0, 8).arrayBuffer());
  if (head.join() !== "137,80,78,71,13,10,26,10") return null;
  for (let at = 8; at + 12 <= file.size; ) {
    const start = new DataView(await file.slice(at, at + 8).arrayBuffer());
    const size = start.getUint32(0);
    const kind = String.fromCharCode(...[4, 5, 6, 7].map((n) => start.getUint8(n)));
    // Texts stand before the pixels.
    if (kind === "IDAT" || size > LONGEST && /^[it]..t$/i.test(kind)) return null;
    if (kind === "tEXt" || kind === "iTXt") {
      const body = new Uint8Array(await file.slice(at + 8, at + 8 + size).arrayBuffer());
      const end = body.indexOf(0);
      if (new TextDecoder("latin1").decode(body.slice(0, end)) === key) {
        if (kind === "tEXt") return new TextDecoder("latin1").decode(body.slice(end + 1));
        if (body[end + 1] !== 0) return null;
        // Language and translated key, each with a zero behind it.
        const language = body.indexOf(0, end + 3);
        return new TextDecoder().decode(body.slice(body.indexOf(0, language + 1) + 1));
      }
    }
    at += 12 + size;
  }
  return null;
}

/** What a picture says that it was made of; null if it is none of ours. @param {Blob} file @returns {Promise<any>} */
export async function requestOf(file) {
  const text = await textOf(file, "iclora:request");
  if (!text) return null;
  try {
    const request = JSON.parse(text);
    return typeof request.prompt === "string" && Array.isArray(request.layout?.boxes) ? request : null;
  } catch {
    return null;
  }
}

/** Open what a picture was made of in Make; false if it is none of ours. @param {Blob} file @returns {Promise<boolean>} */
export async function openPicture(file) {
  const request = await requestOf(file);
  if (!request) return false;
  // What its adapters were called elsewhere says nothing here; their hashes do.
  const used = [{ file: request.adapter, sha256: request.adapter_sha256, strength: request.strength }, ...(request.beside ?? [])].filter((each) => each.sha256);
  const here = await Promise.all(used.map(async (each) => (await get(`adapters?sha256=${each.sha256}`)).adapters[0]?.id));
  const missing = used.find((_, n) => !here[n]);
  const { values, ...more } = draftOf("", request, { input: { adapter: missing ? [] : here.slice(0, 1) } });
  if (used.length && !missing && used[0].strength !== 1) values.strength = String(used[0].strength);
  // Panels have seeds of 32 bits each, made of the seed of the set.
  const seeds = Object.fromEntries((request.seeds ?? []).map((/** @type {number} */ seed, /** @type {number} */ n) => [n + 1, seed]));
  fill(request.prompt, "The request of this picture is opened", { ...more, values, seeds });
  wrong.value = lacking(request, used, missing);
  go("make");
  return true;
}

/**
 * What a request names and this folder does not hold, at the fields that it concerns.
 * @param {any} request @param {any[]} used adapters @param {any} missing the first that is not here
 */
function lacking(request, used, missing) {
  /** @type {Record<string, Problem>} */
  const found = {};
  const say = (/** @type {string} */ where, /** @type {string} */ problem, /** @type {string} */ advice) => (found[where] = new Problem(422, { problem, advice }));
  if (missing) say("adapter", `its adapter ${String(missing.file ?? "").replace(/^.*[/\\]/, "")} is not in this folder`, "The base alone is chosen; put the adapter into the folder, then open the picture again.");
  else if (used.length > 1) say("adapter", `it was made with ${used.length} adapters`, "The first one is chosen: this page takes one.");
  const given = Object.entries(request.given ?? {}).filter(([, each]) => !(/** @type {any} */ (each).latents));
  for (const [panel] of given) say(`slot ${panel}`, "a picture was given here", "It is not in this file: give it again, or have the panel made.");
  return found;
}

/** Take up what was dropped where nothing else takes it. @param {File[]} files */
export const openDropped = (files) => attempt(async () => {
  if (files.length === 1 && (await openPicture(files[0]))) return;
  trouble.value = new Problem(422, {
    problem: files.length === 1 ? `${files[0].name} does not say what it was made of` : "one picture at a time is opened",
    advice: "Only a picture that iclora has made does. Drop other pictures on a panel in Make, and sets on Sets.",
  });
});

/** The button beside the drop. */
export function OpenPicture() {
  const chosen = (/** @type {any} */ event) => {
    const files = /** @type {File[]} */ ([...event.currentTarget.files]);
    event.currentTarget.value = "";
    if (files.length) openDropped(files);
  };
  return html`<label class="button bare" title=${by("all", "open").title}><input type="file" accept="image/png" class="unseen" aria-label="Open a picture that iclora made" ...${by("all", "open")} onChange=${chosen} /><${Icon} name="folder" /></label>`;
}
