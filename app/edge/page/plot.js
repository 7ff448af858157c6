/* A line, or two, over the last minute; a step to the left each time a value is pushed. Drawn as SVG by hand. */

const WIDTH = 59; // steps between the 60 values shown
const HEIGHT = 40;
const SPACE = "http://www.w3.org/2000/svg";

export class Plot {
  /* `floor`: the scale reaches at least so far, so that noise around nothing stays flat. */
  constructor(svg, floor = 1) {
    this.svg = svg;
    this.floor = floor;
    this.rows = [];
    svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
    const base = this.part("line", "");
    for (const [name, value] of Object.entries({ x1: 0, x2: WIDTH, y1: HEIGHT, y2: HEIGHT })) base.setAttribute(name, value);
    this.under = this.part("path", "under");
    this.second = this.part("path", "second");
    this.first = this.part("path", "first");
  }

  part(name, className) {
    const made = document.createElementNS(SPACE, name);
    made.setAttribute("class", className);
    this.svg.append(made);
    return made;
  }

  /* null: nothing is known of this second, and the line has a hole there. */
  push(first, second = null) {
    this.rows.push([first, second]);
    if (this.rows.length > WIDTH + 1) this.rows.shift();
    const top = Math.max(this.floor, this.peak() * 1.1);
    this.first.setAttribute("d", this.path(0, top));
    this.second.setAttribute("d", this.path(1, top));
    this.under.setAttribute("d", this.path(0, top, true));
  }

  /* null: nothing was known in the whole minute. */
  peak() {
    const known = this.rows.flat().filter((value) => value !== null);
    return known.length ? Math.max(...known) : null;
  }

  path(column, top, closed = false) {
    const from = WIDTH + 1 - this.rows.length;
    const runs = [[]];
    this.rows.forEach((row, at) => {
      if (row[column] === null) runs.push([]);
      else runs.at(-1).push(`${from + at} ${(HEIGHT * (1 - row[column] / top)).toFixed(2)}`);
    });
    const drawn = runs.filter((run) => run.length);
    return drawn.map((run) => (closed ? this.closed(run) : `M${run.join("L")}`)).join("");
  }

  closed(run) {
    const edge = (point) => `${point.split(" ")[0]} ${HEIGHT}`;
    return `M${[edge(run[0]), ...run, edge(run.at(-1))].join("L")}Z`;
  }
}
