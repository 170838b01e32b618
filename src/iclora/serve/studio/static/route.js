// @ts-check
// Addresses: #/make, #/gallery?q=fox, #/gallery/ID, #/sets/ID/SET, #/queue. They survive a reload and can be sent.
import { signal } from "./lib.js";

/** @typedef {{screen: string, id: string, part: string, query: URLSearchParams}} Route */

/** A part of an address; one that nobody can have meant is none. @param {string} text */
function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return "";
  }
}

function read() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const [screen = "", id = "", part = ""] = path.split("/");
  return { screen: screen || "make", id: decoded(id), part: decoded(part), query: new URLSearchParams(query) };
}

/** @type {import("@preact/signals").Signal<Route>} */
export const route = signal(read());
let changed = 0;
/** When another screen was asked for, ms since 1970. */
export const heeded = () => changed;

function take() {
  const now = read();
  const { screen, id, part } = route.value;
  if (now.screen !== screen || now.id !== id || now.part !== part) changed = Date.now();
  route.value = now;
}
addEventListener("hashchange", take);

/** Go to an address. @param {string} to such as "gallery/0123" */
export function go(to) {
  location.hash = `#/${to}`;
  // Not when the browser says so: keys that are pressed meanwhile are meant for the new screen.
  take();
}

/** Say the query anew without a step back in the history. @param {Record<string, string>} values */
export function refine(values) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(values)) if (value) query.set(name, value);
  const text = query.toString();
  const { screen, id, part } = route.value;
  const path = [screen, id, part].filter(Boolean).map(encodeURIComponent).join("/");
  history.replaceState(null, "", `#/${path}${text ? `?${text}` : ""}`);
  route.value = read();
}
