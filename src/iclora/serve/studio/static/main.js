// @ts-check
// The page: its frame, and which screen is shown.
import { access, giveToken, openSession, takeToken } from "./api.js";
import { Compare } from "./compare.js";
import { restore } from "./draft.js";
import { Gallery } from "./gallery.js";
import { by, holds, KEYS, listed, spelled, useKeys } from "./keys.js";
import { effect, html, render, signal, useEffect } from "./lib.js";
import { connection } from "./live.js";
import { Make } from "./make.js";
import { openDropped, OpenPicture } from "./opened.js";
import { Dialog, Icon, plain, trouble, Undo, Wrong } from "./parts.js";
import { Queue } from "./queue.js";
import { route } from "./route.js";
import { Sets } from "./sets.js";
import { begin, failed, loaded, machine, pause, queue } from "./state.js";
import { Story } from "./story.js";
import { Train } from "./train.js";
import { said as past } from "./undo.js";

/** The screens by their names in addresses, in the order of the bar. @type {Record<string, [string, () => any]>} */
const SCREENS = {
  sets: ["Sets", Sets], make: ["Make", Make], story: ["Story", Story], train: ["Train", Train], compare: ["Compare", Compare],
  gallery: ["Gallery", Gallery], queue: ["Queue", Queue],
};

/** "", "light" or "dark"; "" is as the machine has it. */
const theme = signal(localStorage.getItem("iclora theme") ?? "");
effect(() => {
  document.documentElement.dataset.theme = theme.value;
  localStorage.setItem("iclora theme", theme.value);
});
const dark = () => theme.value === "dark" || (!theme.value && matchMedia("(prefers-color-scheme: dark)").matches);

function Page() {
  const screen = route.value.screen in SCREENS ? route.value.screen : "make";
  const [name, Screen] = SCREENS[screen];
  useEffect(() => void (document.title = `${name} · iclora studio`), [name]);
  useKeys("all", { pause: () => void pause(), close: () => { if (trouble.value) trouble.value = null; else if (document.activeElement instanceof HTMLElement) document.activeElement.blur(); }, list: () => (listed.value = true) });
  if (access.value === "no") return html`<${Enter} />`;
  return html`
    <a class="unseen skip" href="#main" onClick=${(/** @type {Event} */ event) => { event.preventDefault(); document.getElementById("main")?.focus(); }}>To the content</a>
    <header>
      <a class="brand" href="#/make"><img src=${new URL("icon.svg", import.meta.url).href} alt="" /> iclora</a>
      <nav aria-label="Screens">${Object.entries(SCREENS).map(([to, [label]]) => html`<a href=${`#/${to}`} aria-current=${to === screen ? "page" : undefined}>${label}</a>`)}</nav>
      <span class="ends">
        <${OpenPicture} />
        <button type="button" class="bare" aria-label=${dark() ? "Light colours" : "Dark colours"} ...${by("all", "colours")} onClick=${() => (theme.value = dark() ? "light" : "dark")}><${Icon} name=${dark() ? "sun" : "moon"} /></button>
        <button type="button" class="bare" aria-label="Keys (?)" onClick=${() => (listed.value = true)}>?</button>
      </span>
    </header>
    <${Banner} />
    <main id="main" tabindex="-1">
      <${Wrong} error=${trouble.value} onClose=${() => (trouble.value = null)} />
      ${loaded.value ? html`<${Screen} />` : html`<p class="quiet" role="status">${failed.value ? plain(failed.value.problem) : "Opening"}</p>`}
    </main>
    <${Foot} />
    <${Dialog} open=${listed.value} onClose=${() => (listed.value = false)} label="Keys"><${KeyList} /><//>`;
}

/** The connection, if it is lost; never a reload. */
function Banner() {
  const lost = connection.value === "lost";
  return html`<div class="banner" role="status" hidden=${!lost}>${lost && "The server does not answer. What you write is kept, and the page goes on by itself."}</div>`;
}

function Foot() {
  const now = queue.value;
  const here = machine.value;
  const parts = [now.running && `${now.running} running`, now.waiting && `${now.waiting} waiting`].filter(Boolean);
  return html`<footer>
    <a href="#/queue"><span class=${`lamp ${now.paused ? "paused" : now.running ? "busy" : ""}`} aria-hidden="true"></span>
      ${parts.join(", ") || (loaded.value ? "Nothing waits" : "")}${now.paused ? " · paused" : ""}</a>
    <${Undo} />
    ${here && html`<span class="grow cut" hidden=${past.value !== null} title=${here.waits_for ?? ""}>${here.base}${here.waits_for ? ` · ${here.waits_for}` : ""}</span>
      ${here.devices.map((/** @type {any} */ each, /** @type {number} */ n) => html`<${Device} key=${n} of=${each} number=${here.devices.length > 1 ? n : null} />`)}
      <span class=${here.disk_free < 5e9 ? "low" : ""} title="Free on the disk of this folder"><span class="what-of">Disk</span> ${size(here.disk_free)} free</span>`}
  </footer>`;
}

/** What a GPU, or the CPU, does: its load and its memory. @param {{of: {name: string, used: number, total: number, load: number | null}, number: number | null}} props */
function Device({ of: { name, used, total, load }, number }) {
  const short = name === "CPU" ? name : `GPU${number === null ? "" : ` ${number}`}`;
  const share = load === null ? "" : ` ${Math.round(100 * load)}%`;
  return html`<span class="device" title=${`${name}: ${load === null ? "" : `${Math.round(100 * load)}% busy, `}${size(used)} of ${size(total)} of memory in use`}>${short}${share}
    <meter min="0" max=${total} value=${used} aria-label=${`memory of ${short}`}></meter> <span>${(used / 1e9).toFixed(used < 1e10 ? 1 : 0)}<span class="what-of"> of ${size(total).replace(/ GB$/, "")}</span> GB</span></span>`;
}

const size = (/** @type {number} */ bytes) => (bytes < 1e12 ? `${(bytes / 1e9).toFixed(bytes < 1e10 ? 1 : 0)} GB` : `${(bytes / 1e12).toFixed(1)} TB`);

function KeyList() {
  // What holds here comes first.
  const order = Object.entries(KEYS).sort(([a], [b]) => Number(holds(b)) - Number(holds(a)));
  return html`<div class="steps"><h2>Keys</h2><button type="button" class="bare" aria-label="Close" onClick=${() => (listed.value = false)}><${Icon} name="close" /></button></div>
    ${order.map(([, { named, keys }]) => html`<section key=${named}><h3>${named}</h3>
    <dl class="keys">${Object.values(keys).map(([key, what]) => html`<div key=${key}><dt><kbd>${spelled(key)}</kbd></dt><dd>${what}</dd></div>`)}</dl></section>`)}`;
}

/** What is shown without a token. */
function Enter() {
  const enter = async (/** @type {any} */ event) => {
    event.preventDefault();
    giveToken(new FormData(event.currentTarget).get("token")?.toString() ?? "");
    if (await openSession()) await open();
    else trouble.value = /** @type {any} */ ({ problem: "this is not the server's token", advice: "Copy the whole link that the server printed." });
  };
  return html`<main class="enter"><form onSubmit=${enter}><h1>iclora studio</h1>
    <p>The server printed a link when it was started. Open that link, or paste it here.</p>
    <div class="field"><label for="token">Link or token</label><input id="token" name="token" type="password" autocomplete="off" required /></div>
    <${Wrong} error=${trouble.value} /><button class="main">Enter</button></form></main>`;
}

async function open() {
  trouble.value = null;
  await begin(restore);
}

takeToken();
addEventListener("hashchange", takeToken);
addEventListener("dragover", (event) => {
  // A browser would leave the page for the file.
  if (event.dataTransfer?.types.includes("Files")) event.preventDefault();
});
addEventListener("drop", (event) => {
  if (event.defaultPrevented || !event.dataTransfer?.types.includes("Files")) return;
  event.preventDefault();
  openDropped([...event.dataTransfer.files]);
});
render(html`<${Page} />`, /** @type {HTMLElement} */ (document.getElementById("app")));
try {
  if (await openSession()) await open();
} catch (error) {
  failed.value = /** @type {any} */ (error);
  const timer = setInterval(async () => {
    try {
      if (await openSession()) {
        clearInterval(timer);
        await open();
      }
    } catch { /* It is still away. */ }
  }, 2000);
}
