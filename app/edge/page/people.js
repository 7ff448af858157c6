/* Who people are: the names they gave, by member; and one's own. */

const KEPT = "tocsin.name";
const SHORT = 6; // characters of an id that has no name

export class People {
  names = new Map();

  /* `anonymous`: nobody says who this is, so it needs some name. */
  constructor(anonymous) {
    if (anonymous) sessionStorage[KEPT] ??= `Guest ${crypto.getRandomValues(new Uint16Array(1))[0]}`;
  }

  /* Empty: that of the user. */
  get own() {
    return sessionStorage[KEPT] ?? "";
  }

  set own(name) {
    sessionStorage[KEPT] = name;
  }

  /* What a room says about who joins it. */
  get info() {
    return this.own ? { name: this.own } : {};
  }

  meet({ member, info }) {
    if (typeof info?.name === "string" && info.name.trim()) this.names.set(member, info.name.slice(0, 40));
  }

  knows(member) {
    return this.names.has(member);
  }

  /* A member is a user, or a client where nobody is logged in: such an id says nothing to people, and is cut short. */
  nameOf(member) {
    return this.names.get(member) ?? (member.length > 2 * SHORT ? `${member.slice(0, SHORT)}…` : member);
  }
}
