/* The JavaScript client of Tocsin, for browsers and Node: README.md. The service serves it as one module, minified, at
   /client/tocsin.js. */

import { Connection } from "./src/connection.js";

export { OutboxFull, PublishTimeout, TocsinError } from "./src/errors.js";

export function connect(url, options = {}) {
  return new Connection(url, options);
}
