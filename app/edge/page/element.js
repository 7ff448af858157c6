/* Elements of the document. Text that came from anywhere goes in as text, never as markup. */

export const $ = (selector, root = document) => root.querySelector(selector);

/* A new element; `children` are elements or strings. */
export function element(name, className = "", ...children) {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

/* The one element of a template, anew. */
export function fromTemplate(id) {
  return $(`#${id}`).content.cloneNode(true).firstElementChild;
}

export function timeOfDay(date) {
  return date.toLocaleTimeString([], { hourCycle: "h23" });
}

export function count(number) {
  return number.toLocaleString("en");
}

export function plural(number, one, many = `${one}s`) {
  return `${count(number)} ${number === 1 ? one : many}`;
}
