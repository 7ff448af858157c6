/* The tabs: arrow keys, Home and End move between them (WAI-ARIA Authoring Practices, "Tabs"). */

export class Tabs {
  /* `onChoice(name)` is called when a visitor chooses a tab, not when the page does. */
  constructor(list, onChoice) {
    this.tabs = [...list.querySelectorAll("[role=tab]")];
    for (const tab of this.tabs) tab.onclick = () => onChoice(this.nameOf(tab));
    list.onkeydown = (event) => {
      const last = this.tabs.length - 1;
      const at = this.tabs.indexOf(event.target);
      const to = { ArrowRight: at === last ? 0 : at + 1, ArrowLeft: at === 0 ? last : at - 1, Home: 0, End: last }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      this.tabs[to].focus();
      onChoice(this.nameOf(this.tabs[to]));
    };
  }

  nameOf(tab) {
    return tab.getAttribute("aria-controls");
  }

  show(name) {
    for (const tab of this.tabs) {
      const chosen = this.nameOf(tab) === name;
      tab.setAttribute("aria-selected", chosen);
      tab.tabIndex = chosen ? 0 : -1;
      document.getElementById(this.nameOf(tab)).hidden = !chosen;
    }
  }
}
