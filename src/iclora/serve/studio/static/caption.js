// @ts-check
// The words of one set, saved as they are written; nobody's words are written over unseen.
import { call, get, place as server, Problem } from "./api.js";
import { at, know, matching } from "./data.js";
import { signal } from "./lib.js";
import { done } from "./undo.js";

/** @typedef {import("./data.js").ImageSet} ImageSet */

const kept = (/** @type {string} */ id, /** @type {string} */ name) => `iclora caption ${server} ${id}/${name}`;

/**
 * Keeps the words of one set: in the browser at each change, on the disk soon after.
 *
 * What is in the browser and not on the disk goes on when the set is opened again, also after the browser was killed.
 */
export class Caption {
  /** @param {string} id @param {ImageSet} one */
  constructor(id, one) {
    this.id = id;
    this.name = one.name;
    this.etag = one.etag;
    /** As it is on the disk. */
    this.there = one.caption ?? "";
    this.text = signal(this.there);
    this.state = signal(/** @type {"saved" | "unsaved" | "saving" | "away"} */ ("saved"));
    /** What the server says of the words while they are written. */
    this.judged = signal(/** @type {{tokens: number, limit: number, exact: boolean, problem: string, advice: string} | null} */ (null));
    /** Why they could not be written. */
    this.error = signal(/** @type {Problem | null} */ (null));
    /** The words on the disk, if they were changed there while others were written here. */
    this.theirs = signal(/** @type {{caption: string, etag: string} | null} */ (null));
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    this.timer = undefined;
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    this.judging = undefined;
    /** The words before those that are written without a longer pause: one step takes these back. */
    this.before = /** @type {string | null} */ (null);
    this.wrote = 0;
    this.stepped = false;
    this.closed = false;
    /** The words that are on their way to the disk: the next ones wait for them. @type {Promise<boolean> | null} */
    this.sending = null;
    this.takeUp();
  }

  /** Words that were written here and did not reach the disk. */
  takeUp() {
    const here = JSON.parse(localStorage.getItem(kept(this.id, this.name)) ?? "null");
    if (!here || here.text === this.there) {
      localStorage.removeItem(kept(this.id, this.name));
      return;
    }
    this.text.value = here.text;
    this.state.value = "unsaved";
    if (here.etag === this.etag) this.soon();
    else this.theirs.value = { caption: this.there, etag: this.etag };
  }

  /** @param {string} text */
  write(text) {
    if (this.before === null || Date.now() - this.wrote > 2000) {
      this.before = this.there;
      this.stepped = false;
    }
    this.wrote = Date.now();
    this.text.value = text;
    this.state.value = "unsaved";
    this.error.value = null;
    localStorage.setItem(kept(this.id, this.name), JSON.stringify({ etag: this.etag, text }));
    this.judge();
    this.soon();
  }

  judge() {
    clearTimeout(this.judging);
    this.judging = setTimeout(async () => {
      const text = this.text.value;
      try {
        const said = await call("POST", `${at(this.id)}/words`, { caption: text });
        if (text === this.text.value) this.judged.value = said;
      } catch (error) {
        if (!(error instanceof Problem)) throw error;
      }
    }, 250);
  }

  soon() {
    // Counted from the first change: who writes on without a pause is saved, too. A browser that is killed
    // forgets what it was told to keep in the last seconds.
    if (!this.theirs.value) this.timer ??= setTimeout(() => this.save(), 800);
  }

  halt() {
    clearTimeout(this.timer);
    this.timer = undefined;
  }

  /** Write the words to the disk; true if they are there. @returns {Promise<boolean>} */
  async save() {
    this.halt();
    if (this.sending) {
      // Sent at once, they would meet a file that these words have changed themselves.
      await this.sending;
      return this.save();
    }
    this.sending = this.send();
    try {
      return await this.sending;
    } finally {
      this.sending = null;
    }
  }

  async send() {
    const text = this.text.value.trim();
    if (this.theirs.value) return false;
    if (text === this.there) {
      this.state.value = "saved";
      localStorage.removeItem(kept(this.id, this.name));
      return true;
    }
    if (!text) {
      this.error.value = new Problem(422, { problem: "there are no words", advice: "The words on the disk stay until there are new ones." });
      return false;
    }
    this.state.value = "saving";
    try {
      const now = await call("PUT", `${at(this.id, this.name)}/caption`, { caption: text }, matching(this.etag));
      this.took(now);
      return true;
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      await this.failed(error);
      return false;
    }
  }

  /** @param {ImageSet} now */
  took(now) {
    const before = this.before;
    this.etag = now.etag;
    this.there = now.caption ?? "";
    this.error.value = null;
    know(now);
    if (this.text.value.trim() === this.there) {
      this.state.value = "saved";
      localStorage.removeItem(kept(this.id, this.name));
    } else this.soon();
    if (!this.stepped && before && before !== now.caption) {
      this.stepped = true;
      done(`The words of ${this.name} are saved`, () => this.back(before));
    }
  }

  /** Put earlier words back, whatever is shown now. @param {string} text */
  async back(text) {
    const now = await get(at(this.id, this.name));
    const put = await call("PUT", `${at(this.id, this.name)}/caption`, { caption: text }, matching(now.etag));
    this.settle(put);
  }

  /** @param {Problem} error */
  async failed(error) {
    this.state.value = error.status === 0 ? "away" : "unsaved";
    if (error.status === 412) {
      const now = await get(at(this.id, this.name)).catch(() => null);
      if (now && (now.caption ?? "") === this.text.value.trim()) this.settle(now);
      else if (now) this.theirs.value = { caption: now.caption ?? "", etag: now.etag };
    } else if (error.status === 0 || error.status >= 500) {
      if (!this.closed) this.timer ??= setTimeout(() => this.save(), 3000);
    } else this.error.value = error;
  }

  /** Show what is on the disk. @param {ImageSet} now */
  settle(now) {
    this.halt();
    this.etag = now.etag;
    this.there = now.caption ?? "";
    this.text.value = this.there;
    this.theirs.value = null;
    this.error.value = null;
    this.state.value = "saved";
    this.before = null;
    localStorage.removeItem(kept(this.id, this.name));
    know(now);
    this.judge();
  }

  /** The set as the server tells it now: a change there is shown, or stands beside what was written here. @param {ImageSet} now */
  heard(now) {
    // Words on their way change the file: what came of them is known soon.
    if (now.etag === this.etag || this.sending) return;
    if (this.state.value === "saved") this.settle(now);
    else if (this.state.value !== "saving") {
      this.halt();
      this.theirs.value = { caption: now.caption ?? "", etag: now.etag };
    }
  }

  /** Keep the words that were written here, over those on the disk. */
  async keepMine() {
    const theirs = this.theirs.value;
    if (!theirs) return;
    this.etag = theirs.etag;
    this.there = theirs.caption;
    this.before = theirs.caption || null;
    this.stepped = false;
    this.theirs.value = null;
    await this.save();
  }

  /** Take the words on the disk; those that were written here come back by undo. */
  async takeTheirs() {
    const mine = this.text.value;
    const now = await get(at(this.id, this.name));
    this.settle(now);
    done("The words on the disk are taken", () => this.write(mine));
  }

  close() {
    this.closed = true;
    if (this.state.value === "unsaved" && !this.error.value) this.save();
    this.halt();
  }
}
