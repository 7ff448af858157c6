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

  /* Of a message: by user, or by client where nobody is logged in. */
  nameOf({ user, from }) {
    return this.names.get(user ?? from) ?? user ?? (from ? this.short(from) : "over HTTP");
  }

  nameOfMember({ member }) {
    return this.names.get(member) ?? this.short(member);
  }

  short(id) {
    return id.length > 2 * SHORT ? `${id.slice(0, SHORT)}…` : id;
  }
}
