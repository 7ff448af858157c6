/* The token of this tab: asked for where the service wants one, kept in sessionStorage, forgotten on request. */

import { $ } from "./element.js";
import { ask } from "./service.js";

const KEPT = "tocsin.token";

export class Token {
  /* `onEntry()` is called when the service lets one in, `onWant()` when it asks who one is. */
  constructor(form, onEntry, onWant) {
    this.wanted = false;
    this.root = form;
    this.onEntry = onEntry;
    this.onWant = onWant;
    $("form", form).onsubmit = (event) => {
      event.preventDefault();
      this.value = $("textarea", form).value.replace(/\s+/g, ""); // pasted from a terminal, it may be broken into lines
      this.enter();
    };
  }

  get value() {
    return sessionStorage[KEPT] ?? "";
  }

  set value(token) {
    sessionStorage[KEPT] = token;
  }

  /* Whether this service asks for one, as far as is known. */
  get needed() {
    return Boolean(this.value) || this.wanted;
  }

  forget() {
    delete sessionStorage[KEPT];
  }

  /* Ask as the upgrade would be asked. Whatever is not about who one is, the connection itself will tell better. */
  async enter() {
    const answer = await ask("/api/v1/connect?protocols=tocsin.v1", this.value).catch(() => null);
    if (answer?.status === 401) return this.want(answer.sentence);
    this.root.hidden = true;
    $("textarea", this.root).value = "";
    this.onEntry();
  }

  /* Show the form, with what the service said. */
  want(sentence) {
    this.wanted = true;
    this.root.hidden = false;
    $(".said", this.root).textContent = this.value ? `Refused: ${sentence}` : `It says: ${sentence}.`;
    $(".said", this.root).classList.toggle("bad", Boolean(this.value));
    $("textarea", this.root).focus();
    this.onWant();
  }
}
