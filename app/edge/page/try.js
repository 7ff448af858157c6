/* Try: what to paste elsewhere, for this very server and the channel that is open. */

import { $, fromTemplate } from "./element.js";
import { escaped, socketAddress } from "./service.js";

const SHOWN = 4000; // ms that "Copied" stays

/* Everything pasteable; `token`: whether this service asks for one. Each reads it from where one keeps it. */
export function snippets(channel, token) {
  const plain = `${socketAddress()}?channel=${escaped(channel)}`;
  const messages = `${location.origin}/api/v1/channels/${escaped(channel)}/messages`;
  const bearer = token ? `  -H "Authorization: Bearer $TOKEN" \\\n` : "";
  return [
    {
      title: "Browser, no library",
      about: "Ten lines for any page of this origin. Plain: one channel, text in, text out.",
      code: tenLines(plain, token),
    },
    {
      title: "Browser, with the client",
      about: "Comes back by itself, asks for what it missed, publishes once. Served here, no build step.",
      code: `import { connect } from "${location.origin}/client/tocsin.js";

const tocsin = connect("${socketAddress()}"${token ? ", { getToken: () => token }" : ""});
const room = tocsin.channel("${channel}");
room.on("message", ({ id, data }) => console.log(id, data));
room.on("gap", () => console.log("messages were lost: load your state anew"));
await room.subscribe();
const { id } = await room.publish({ text: "Hello from the client" });
console.log("in the log as", id);`,
    },
    {
      title: "Python",
      about: "The package tocsin: the same semantics, typed, for asyncio.",
      code: `import asyncio
${token ? "import os\n" : ""}
import tocsin

async def main():
    async with tocsin.connect("${socketAddress()}"${token ? ', token=os.environ["TOKEN"]' : ""}) as client:
        async with client.subscribe("${channel}") as room:
            await room.publish({"text": "Hello from Python"})
            async for event in room:
                print(event)

asyncio.run(main())`,
    },
    {
      title: "curl: publish",
      about: "201 says that it is in the log. With a “key” a retry publishes once.",
      code: `curl -d '{"data": {"text": "Hello from curl"}}' \\
  -H 'Content-Type: application/json' \\
${bearer}  ${messages}`,
    },
    {
      title: "curl: read the log",
      about: "The newest ten; go on from “position” with ?since=.",
      code: `curl ${bearer && `${bearer.trimStart()}  `}'${messages}?limit=10'`,
    },
    {
      title: "websocat",
      about: "A terminal in the channel: each line is a message.",
      code: `websocat ${token ? '-H="Authorization: Bearer $TOKEN" ' : ""}'${plain}'`,
    },
    {
      title: "EventSource",
      about: token
        ? "Server-sent events; the browser resumes by itself. It can send no token but a cookie: see TOCSIN_COOKIE."
        : "Server-sent events, to read only; the browser itself resumes where it stood.",
      code: `const events = new EventSource("${location.origin}/sse?channel=${escaped(channel)}");
events.onmessage = ({ data, lastEventId }) => console.log(lastEventId, JSON.parse(data));
events.addEventListener("gap", () => console.log("messages were lost: load your state anew"));`,
    },
  ];
}

function tenLines(address, token) {
  const offer = token ? ', ["tocsin.plain", "tocsin.bearer." + token]' : "";
  return `function connect(failures = 0) {
  const socket = new WebSocket("${address}"${offer});
  socket.onopen = () => { failures = 0; socket.send("Hello from ten lines"); };
  socket.onmessage = ({ data }) => console.log(data);
  socket.onclose = ({ code }) => {
    if (/^(100[023789]|44..)$/.test(code)) return; // coming back would not help
    setTimeout(connect, Math.random() * Math.min(30_000, 500 * 2 ** failures), failures + 1);
  };
}
connect();`;
}

export class Try {
  constructor(root) {
    this.root = root;
  }

  show(channel, token) {
    const lead = `For ${location.host} and the channel ${channel}.`;
    const more = token ? " This service asks for a token: keep it in TOKEN (shell) or token (script)." : "";
    $(".lead", this.root).textContent = lead + more;
    $(".snippets", this.root).replaceChildren(...snippets(channel, token).map((each) => this.section(each)));
  }

  section({ title, about, code }) {
    const root = fromTemplate("snippet");
    $("h2", root).textContent = title;
    $(".quiet", root).textContent = about;
    $("code", root).textContent = code;
    $("pre", root).setAttribute("aria-label", title);
    const button = $("button", root);
    button.setAttribute("aria-label", `Copy: ${title}`);
    button.onclick = () => copy($("code", root), $(".copied", root));
    return root;
  }
}

async function copy(code, said) {
  try {
    await navigator.clipboard.writeText(code.textContent);
    said.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(code); // without https a page may not write the clipboard
    said.textContent = "Selected: copy it with your keyboard";
  }
  setTimeout(() => (said.textContent = ""), SHOWN);
}
