// @ts-check
// A picture of ours that is dropped opens what it was made of in Make.
import { get } from "./api.js";
import { fill } from "./draft.js";
import { draftOf } from "./making.js";
import { go } from "./route.js";
import { note } from "./undo.js";

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

/** Open what a picture was made of in Make; false if it is none of ours. @param {Blob} file @returns {Promise<boolean>} */
export async function openPicture(file) {
  const text = await textOf(file, "iclora:request");
  if (!text) return false;
  let request;
  try {
    request = JSON.parse(text);
    if (typeof request.prompt !== "string" || !Array.isArray(request.layout?.boxes)) return false;
  } catch {
    return false;
  }
  // What its adapters were called elsewhere says nothing here; their hashes do.
  const used = [{ file: request.adapter, sha256: request.adapter_sha256, strength: request.strength }, ...(request.beside ?? [])].filter((each) => each.sha256);
  const here = await Promise.all(used.map(async (each) => (await get(`adapters?sha256=${each.sha256}`)).adapters[0]?.id));
  const missing = used.find((_, n) => !here[n]);
  const { values, ...more } = draftOf("", request, { input: { adapter: missing ? [] : here.slice(0, 1) } });
  if (used.length && !missing && used[0].strength !== 1) values.strength = String(used[0].strength);
  // Panels have seeds of 32 bits each, made of the seed of the set.
  const seeds = Object.fromEntries((request.seeds ?? []).map((/** @type {number} */ seed, /** @type {number} */ n) => [n + 1, seed]));
  fill(request.prompt, "The request of this picture is opened", { ...more, values, seeds });
  const given = Object.keys(request.given ?? {});
  if (missing) note(`Its adapter ${String(missing.file ?? "").replace(/^.*[/\\]/, "")} is not in this folder; the base alone is chosen`);
  else if (used.length > 1) note(`It was made with ${used.length} adapters; the first one is chosen`);
  else if (given.length) note(`Give panel ${given.join(", ")} its picture again: it is not in this file`);
  go("make");
  return true;
}

/** Take up what was dropped where nothing else takes it. @param {File[]} files */
export async function openDropped(files) {
  if (files.length === 1 && (await openPicture(files[0]))) return;
  note("Only a picture that iclora has made says what it was made of; drop others on a panel, and sets on Sets");
}
