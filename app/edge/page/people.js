/* Who people are: the names they gave, by member; and one's own. */

const KEPT = "tocsin.name";
const SHORT = 6; // characters of an id that has no name

export class People {
  names = new Map();

  get own() {
    return (sessionStorage[KEPT] ??= `Guest ${crypto.getRandomValues(new Uint16Array(1))[0]}`);
  }

  set own(name) {
    sessionStorage[KEPT] = name;
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
