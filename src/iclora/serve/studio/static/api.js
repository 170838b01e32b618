// @ts-check
// Calls of the server. Every path is relative, so that the page works below a sub-path.
import { signal } from "./lib.js";

const PLACE = new URL(".", document.baseURI).pathname;
const TOKEN = `iclora-token ${PLACE}`;

/** "yes" once a call was let through, "no" if there is no token or a wrong one. */
export const access = signal(/** @type {"unknown" | "yes" | "no"} */ ("unknown"));

/** What the server refuses or cannot do, in its own words. */
export class Problem extends Error {
  /**
   * @param {number} status 0 if no answer came
   * @param {{problem?: string, advice?: string, setting?: string | null, code?: string}} said
   */
  constructor(status, said) {
    super(said.problem ?? "something went wrong");
    this.status = status;
    this.problem = said.problem ?? "something went wrong";
    this.advice = said.advice ?? "";
    this.setting = said.setting ?? null;
    this.code = said.code ?? "";
  }
}

/** Keep the token that stands behind # in the printed link, and take it out of the address. */
export function takeToken() {
  const found = /^#token=([\w-]{20,})$/.exec(location.hash);
  if (!found) return;
  localStorage.setItem(TOKEN, found[1]);
  history.replaceState(null, "", `${location.pathname}${location.search}#/make`);
}

/** @param {string} text a token, or the whole link that the server printed */
export function giveToken(text) {
  localStorage.setItem(TOKEN, text.trim().replace(/^.*#token=/, ""));
}

export const token = () => localStorage.getItem(TOKEN) ?? "";
export const place = PLACE;

/** The address of something below the API. @param {string} path */
export const url = (path) => new URL(`api/v1/${path}`, document.baseURI).href;

/**
 * Call the API.
 * @param {string} method
 * @param {string} path below api/v1/
 * @param {unknown} [body] JSON, or a form with files
 * @param {Record<string, string>} [headers]
 * @returns {Promise<any>}
 */
export async function call(method, path, body, headers = {}) {
  const form = body instanceof FormData;
  /** @type {Record<string, string>} */
  const all = { ...headers };
  if (token()) all.Authorization = `Bearer ${token()}`;
  if (body !== undefined && !form) all["Content-Type"] = "application/json";
  const sent = body === undefined ? undefined : form ? body : JSON.stringify(body);
  const answer = await reached(fetch(url(path), { method, headers: all, body: /** @type {any} */ (sent) }));
  if (answer.status === 401) access.value = "no";
  if (!answer.ok) throw await refusal(answer);
  access.value = "yes";
  // A server that goes down may cut an answer short.
  return answer.status === 204 ? null : reached(answer.json());
}

/**
 * What comes over the network, or why it does not.
 * @template T
 * @param {Promise<T>} coming
 * @returns {Promise<T>}
 */
async function reached(coming) {
  try {
    return await coming;
  } catch {
    throw new Problem(0, {
      problem: "the server does not answer",
      advice: "What you wrote is kept; this works again as soon as the server does.",
    });
  }
}

/** @param {Response} answer that is no success */
async function refusal(answer) {
  const said = await answer.json().catch(() => ({ problem: `the server said ${answer.status}` }));
  return new Problem(answer.status, said);
}

/** A picture that the server has. @param {string} address its whole address @returns {Promise<Blob>} */
export async function pictureAt(address) {
  const answer = await reached(fetch(address));
  if (!answer.ok) throw await refusal(answer);
  return reached(answer.blob());
}

export const get = (/** @type {string} */ path) => call("GET", path);
export const post = (/** @type {string} */ path, /** @type {unknown} */ body = undefined,
  headers = {}) => call("POST", path, body, headers);

/** The cookie that pictures and events need; true if the server lets us in. */
export async function openSession() {
  try {
    await post("session");
    return true;
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    return false;
  }
}

/** Send a picture. @param {Blob} file @returns {Promise<{sha256: string, width: number, height: number}>} */
export async function sendPicture(file) {
  const form = new FormData();
  form.append("file", file, file instanceof File ? file.name : "picture.png");
  return call("POST", "assets", form);
}
