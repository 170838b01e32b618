// @ts-check
// Addresses: #/make, #/gallery?q=fox, #/gallery/ID, #/queue. They survive a reload and can be sent.
import { signal } from "./lib.js";

/** @typedef {{screen: string, id: string, query: URLSearchParams}} Route */

function read() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const [screen = "", id = ""] = path.split("/");
  return { screen: screen || "make", id: decodeURIComponent(id), query: new URLSearchParams(query) };
}

/** @type {import("@preact/signals").Signal<Route>} */
export const route = signal(read());
addEventListener("hashchange", () => (route.value = read()));

/** Go to an address. @param {string} to such as "gallery/0123" */
export function go(to) {
  location.hash = `#/${to}`;
}

/** Say the query anew without a step back in the history. @param {Record<string, string>} values */
export function refine(values) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(values)) if (value) query.set(name, value);
  const text = query.toString();
  const { screen, id } = route.value;
  history.replaceState(null, "", `#/${screen}${id && `/${encodeURIComponent(id)}`}${text ? `?${text}` : ""}`);
  route.value = read();
}
