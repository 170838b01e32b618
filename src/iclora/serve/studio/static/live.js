// @ts-check
// What happens on the server, told once for all tabs: browsers allow few streams to one host.
import { openSession, place, url } from "./api.js";
import { signal } from "./lib.js";

/** "open", "lost", or "polling" if the server takes no further stream. */
export const connection = signal(/** @type {"starting" | "open" | "lost" | "polling"} */ ("starting"));

const TYPES = ["job", "progress", "preview", "note", "run", "set", "queue", "reset"];
/** @type {Set<(type: string, data: any) => void>} */
const listeners = new Set();
const channel = new BroadcastChannel(`iclora ${place}`);
let leads = false;
let begun = false;
/** The last event that this tab knows of: whoever holds the stream next goes on from there. */
let heard = "";

/** Hear of every event; "reset" means: ask again for all that you show. */
export function listen(/** @type {(type: string, data: any) => void} */ hear) {
  listeners.add(hear);
  return () => listeners.delete(hear);
}

function tell(/** @type {string} */ type, /** @type {any} */ data) {
  for (const hear of listeners) hear(type, data);
}

function become(/** @type {"open" | "lost" | "polling"} */ state) {
  const was = connection.value;
  connection.value = state;
  if (leads) channel.postMessage({ state });
  // At the start nothing was missed: the stream begins where the first answer ended.
  if (state === "open" && ["lost", "polling"].includes(was)) tell("reset", {});
}

channel.onmessage = ({ data }) => {
  if (data.ask && leads && connection.value !== "starting") channel.postMessage({ state: connection.value });
  if (data.state && !leads) become(data.state);
  if (data.type && !leads) {
    heard = data.id;
    tell(data.type, data.data);
  }
};

/**
 * Begin: one tab holds the stream and passes on what it hears, the next takes over when it goes.
 * @param {string} after the last event that is in what the page knows
 */
export function start(after) {
  if (begun) return;
  begun = true;
  heard ||= after;
  if (!navigator.locks) {
    lead();
    return;
  }
  channel.postMessage({ ask: true });
  navigator.locks.request(`iclora ${place}`, () => {
    lead();
    return new Promise(() => {});
  });
}

function lead() {
  leads = true;
  let wait = 1000;
  /** @type {number | undefined} */
  let grace;
  const open = () => {
    const stream = new EventSource(url(`events?after=${heard}`));
    stream.onopen = () => {
      clearTimeout(grace);
      wait = 1000;
      become("open");
    };
    stream.onerror = () => {
      clearTimeout(grace);
      // A proxy may cut a stream that comes back at once: nobody need hear of that.
      grace = setTimeout(() => become("lost"), 700);
      if (stream.readyState !== EventSource.CLOSED) return;
      setTimeout(again, wait);
      wait = Math.min(8000, wait * 1.6);
    };
    for (const type of TYPES) {
      stream.addEventListener(type, (event) => {
        const { data: text, lastEventId: id } = /** @type {MessageEvent} */ (event);
        const data = JSON.parse(text);
        heard = id;
        channel.postMessage({ type, data, id });
        tell(type, data);
      });
    }
  };
  const again = async () => {
    if (await openSession()) {
      // It answers and yet refused the stream: there are too many.
      if (connection.value === "lost") become("polling");
      if (connection.value === "polling") tell("reset", {});
    }
    open();
  };
  open();
}
