// A document, a server and a user for the page's script, as little of each as it uses. Prints what is shown.
"use strict";
const [html, said] = [0, 1].map((index) => require("fs").readFileSync(process.argv[2 + index], "utf8"));
const scene = JSON.parse(said);

class Node {
  constructor(tag) {
    Object.assign(this, { tag, children: [], dataset: {}, attributes: {}, handlers: {}, className: "", value: "", hidden: false, disabled: false, own: "", filled: 0 });
    this.style = { setProperty() {} };
    this.classList = { add: (name) => { this.className += ` ${name}`; } };
  }
  set innerHTML(_) { throw new Error("HTML is put in"); }
  set outerHTML(_) { throw new Error("HTML is put in"); }
  get textContent() { return this.own + this.children.map((child) => child.textContent).join(" "); }
  set textContent(text) { this.own = String(text); this.children = []; }
  adopt(nodes) { for (const node of nodes) node.parentNode = this; return nodes; }
  append(...nodes) { this.children.push(...this.adopt(nodes)); }
  prepend(...nodes) { this.children.unshift(...this.adopt(nodes)); }
  replaceChildren(...nodes) { this.own = ""; this.children = this.adopt(nodes); this.filled += 1; }
  remove() { this.parentNode.children = this.parentNode.children.filter((node) => node !== this); }
  classed(name) { return [...(this.className === name ? [this] : []), ...this.children.flatMap((child) => child.classed(name))]; }
  all(tag) { return [...(this.tag === tag ? [this] : []), ...this.children.flatMap((child) => child.all(tag))]; }
  get lastChild() { const all = this.children; return { remove: () => all.pop() }; }
  setAttribute(name, value) { this.attributes[name] = value; }
  toggleAttribute(name, there) { this.attributes[name] = there; }
  addEventListener(name, handler) { this.handlers[name] = handler; }
  focus() {}
}

const byId = new Map([...html.matchAll(/ id="([^"]+)"/g)].map((found) => [found[1], new Node("fixed")]));
const above = {}; // who listens to the document and the window
globalThis.addEventListener = (name, handler) => { above[name] = [...(above[name] || []), handler]; };
globalThis.document = {
  addEventListener,
  getElementById(id) { if (!byId.has(id)) throw new Error(`there is no ${id}`); return byId.get(id); },
  createElement: (tag) => new Node(tag),
};
globalThis.requestAnimationFrame = (draw) => setTimeout(draw, 0);
const asked = [], left = []; // the paths of streams that were let go
globalThis.fetch = async (place, options) => {
  const path = new URL(place, "http://here/").pathname; // as of a page at the root
  asked.push({ path, ...options, signal: undefined });
  options.signal.addEventListener("abort", () => left.push(path));
  if (scene.answers[path][0] === "away") { scene.answers[path].shift(); throw new TypeError("fetch failed"); }
  const next = scene.answers[path][0];
  if (next && next.key && options.headers.Authorization !== `Bearer ${next.key}`) {
    return new Response(JSON.stringify({ error: { message: "no key" } }), { status: 401 });
  }
  const answer = scene.answers[path].shift();
  if (!answer) return new Promise(() => {});
  if (!answer.hangs) return new Response(answer.body, { status: answer.status || 200 });
  return new Response(new ReadableStream({ start(stream) { // more may come, until it is stopped
    stream.enqueue(new TextEncoder().encode(answer.body));
    options.signal.addEventListener("abort", () => stream.error(options.signal.reason));
  } }));
};
globalThis.setTimeout = ((real) => (go, ms) => real(go, Math.min(ms || 0, 5)))(setTimeout);
new Function(html.match(/<script>([\s\S]*?)<\/script>/)[1])();

const wait = (ms) => new Promise((go) => setTimeout(go, ms));
const rest = async () => { for (let turn = 0; turn < 20; turn += 1) await wait(5); };
const event = { preventDefault() {} };
function happen(id, name, value) {
  if (id !== "document") {
    if (value !== undefined && value !== null) byId.get({ ask: "prompt", "key-form": "key" }[id] || id).value = value;
    return name === "type" ? undefined : byId.get(id).handlers[name](event); // who listens to no key has it read later
  }
  if (name === "visibilitychange") document.hidden = value === "hidden";
  for (const handler of above[name]) handler({ ...event, key: value });
}
(async () => {
  await rest();
  for (const [id, name, value] of scene.does) {
    happen(id, name, value);
    await rest();
  }
  const shown = Object.fromEntries([...byId].map(([id, node]) => [id, node.textContent]));
  const tiles = byId.get("experts").children.map((row) => row.children[0]);
  const marked = Object.fromEntries(["pre", "code", "strong"].map((tag) => [tag, byId.get("talk").all(tag).map((node) => node.textContent)]));
  const kinds = Object.fromEntries(["head", "item", "cells"].map((name) => [name, byId.get("talk").classed(name).map((node) => node.textContent)]));
  const found = tiles.filter((tile) => !tile.parentNode.hidden).length;
  console.log(JSON.stringify({ shown, asked, left, kinds, marked, found, chosen: byId.get("model").value, prompt: byId.get("prompt").value, sought: !byId.get("find").hidden, hidden: byId.get("key-form").hidden, filled: Math.max(...tiles.map((tile) => tile.filled)), made: byId.get("experts").filled, states: tiles.map((tile) => tile.dataset.state) }));
  process.exit(0);
})();
