// Prints what is wrong with an AsyncAPI document, one line each, and fails where that is an error or a warning.
import { readFileSync } from "node:fs";
import { Parser } from "@asyncapi/parser";

const { document, diagnostics } = await new Parser().parse(readFileSync(process.argv[2], "utf8"));
const wrong = diagnostics.filter(({ severity }) => severity < 2); // 2: that there is a newer version of the specification
for (const { code, path, message } of wrong) console.log(code, path.join("."), message);
process.exit(document && wrong.length === 0 ? 0 : 1);
