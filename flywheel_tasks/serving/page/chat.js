"use strict";
const at = (id) => document.getElementById(id);
const store = {
  get: (name, kind = sessionStorage) => { try { return kind.getItem(name); } catch { return null; } },
  set: (name, value, kind = sessionStorage) => {
    try { if (value === null) kind.removeItem(name); else kind.setItem(name, value); } catch { /* not kept, then */ }
  },
};
const INSIDE = ["who", "new", "leave", "talk", "foot"];  // shown once a key was accepted
let key = store.get("flywheel-key");
let characters = [];
let turns = [];            // what was said: {role, content, id, element}
let conversation = null;
let running = null;        // the AbortController of a reply that is being written

// Theme: the system's until the user chooses.
const system = matchMedia("(prefers-color-scheme: dark)");
function paint() {
  document.documentElement.dataset.theme = store.get("flywheel-theme", localStorage) || (system.matches ? "dark" : "light");
}
system.addEventListener("change", paint);
at("theme").addEventListener("click", () => {
  store.set("flywheel-theme", document.documentElement.dataset.theme === "dark" ? "light" : "dark", localStorage);
  paint();
});
paint();

// Talking to the gateway.
async function call(path, body, signal) {
  const options = { headers: { authorization: "Bearer " + key }, signal };
  if (body) {
    options.method = "POST";
    options.headers["content-type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The gateway cannot be reached.");
  }
  if (!response.ok) {
    const told = await response.json().catch(() => ({}));
    const error = new Error(told.error ? sentence(told.error.message) : "The gateway answered " + response.status + ".");
    error.status = response.status;
    error.code = told.error && told.error.code;
    throw error;
  }
  return response;
}
function sentence(text) {
  return text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");
}
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    rest += value;
    for (let end; (end = rest.indexOf("\n\n")) >= 0; rest = rest.slice(end + 2)) {
      const data = rest.slice(0, end).replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

// Entering.
at("enter").addEventListener("submit", (event) => {
  event.preventDefault();
  key = at("key").value.trim();
  enter();
});
at("leave").addEventListener("click", () => leave(""));
function leave(why) {
  if (running) running.abort();
  key = null;
  store.set("flywheel-key", null);
  turns = []; conversation = null;
  at("log").replaceChildren();
  for (const id of INSIDE) at(id).hidden = true;
  document.title = "Characters";
  at("enter").hidden = false;
  at("enter-problem").textContent = why;
  at("key").value = "";
  at("key").focus();
}
async function enter() {
  at("enter-problem").textContent = "";
  try {
    await load();
  } catch (error) {
    leave(error.status === 401 ? "This key is not valid." : error.message);
    return;
  }
  store.set("flywheel-key", key);
  at("enter").hidden = true;
  for (const id of INSIDE) at(id).hidden = false;
  begin();
}
async function load() {
  characters = (await (await call("/v1/models")).json()).data;
  const before = at("character").value || store.get("flywheel-character");
  at("character").replaceChildren(...characters.map((one) => new Option(one.name, one.id)));
  if (characters.some((one) => one.id === before)) at("character").value = before;
}
at("character").addEventListener("change", begin);
at("new").addEventListener("click", async () => {
  begin();
  const [mine, who, text] = [key, at("character").value, greeting()];
  await load().catch(() => {});  // characters may have changed; what cannot be asked now is told at the first message
  const changed = at("character").value !== who || greeting() !== text;
  if (changed && key === mine && !running && turns.every((turn) => turn.greeting)) begin();
});
function begin() {
  if (running) running.abort();
  turns = []; conversation = null;
  store.set("flywheel-character", at("character").value);
  const name = at("character").selectedOptions[0].textContent;
  at("face").textContent = Array.from(name.trim())[0] || "?";
  document.title = name;
  at("log").replaceChildren();
  const strong = document.createElement("strong");
  strong.textContent = name;
  at("empty").replaceChildren(strong, "Say something to begin.");
  at("empty").hidden = false;
  problem("");
  const text = greeting();
  if (text) turns.push({ role: "assistant", content: text, greeting: true, element: add("assistant", text) });
  at("say").focus();
}
function greeting() {
  const chosen = characters.find((one) => one.id === at("character").value);
  return chosen ? chosen.greeting : null;
}
function problem(text) { at("problem").textContent = text; }

// The conversation. Text only ever becomes text: nothing of it is read as markup.
function add(role, text) {
  const element = at("message").content.firstElementChild.cloneNode(true);
  element.classList.add(role);
  element.querySelector(".text").textContent = text;
  at("log").append(element);
  at("empty").hidden = true;
  follow();
  return element;
}
function follow() {
  const main = document.querySelector("main");
  main.scrollTop = main.scrollHeight;
}
at("say").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    at("send").requestSubmit();
  }
});
at("say").addEventListener("input", fit);
function fit() {
  const box = at("say");
  box.style.height = "auto";
  box.style.height = box.scrollHeight + 2 + "px";
}
at("send").addEventListener("submit", (event) => {
  event.preventDefault();
  if (running) { running.abort(); return; }
  const text = at("say").value;
  if (!text.trim()) return;
  at("say").value = "";
  fit();
  turns.push({ role: "user", content: text, element: add("user", text) });
  reply(null);
});
async function reply(replaced) {
  problem("");
  for (const old of document.querySelectorAll(".again")) old.hidden = true;
  const mine = running = new AbortController();
  const element = add("assistant", "");
  const box = element.querySelector(".text");
  element.classList.add("waiting");
  at("go").textContent = "Stop";
  let said = "", more = null, trouble = null, finish = null;
  const stopped = turns.some((turn) => turn.role === "assistant" && !turn.id && !turn.greeting);
  try {
    const metadata = {};
    if (conversation) metadata.conversation_id = conversation;
    if (replaced) metadata.regenerate = replaced.id;
    const messages = turns.map(({ role, content }) => ({ role, content }));
    const body = { model: at("character").value, messages, stream: true, metadata };
    const ask = () => call("/v1/chat/completions", body, mine.signal);
    // A reply that was stopped just now may still be on its way into the records.
    const response = await ask().catch((error) => {
      if (!stopped || error.status !== 409) throw error;
      return new Promise((done) => setTimeout(done, 700)).then(ask);
    });
    for await (const part of events(response)) {
      if (part.error) throw new Error(sentence(part.error.message));
      const choice = part.choices[0];
      said += choice.delta.content || "";
      box.textContent = said;
      finish = choice.finish_reason;
      more = part.flywheel || more;
      follow();
    }
  } catch (error) {
    trouble = error;
  }
  if (running !== mine) return;
  running = null;
  at("go").textContent = "Send";
  element.classList.remove("waiting");
  settle({ element, said, more, finish, trouble, replaced });
  follow();
}
function settle({ element, said, more, finish, trouble, replaced }) {
  if (more) {
    conversation = more.conversation_id;
    if (!said) element.classList.add("silent");
    const turn = { role: "assistant", content: said, id: more.message_id, element };
    if (replaced) replaced.element.remove();
    turns.push(turn);
    const note = element.querySelector(".note");
    if (finish === "content_filter") note.textContent = "Stopped by the safety check";
    else if (more.fallback) note.textContent = "Answered by the champion";
    act(turn);
    return;
  }
  if (trouble && trouble.status === 401) { leave("This key is not valid any more."); return; }
  if (trouble && trouble.code === "no_greeting") problem("This character greets otherwise now. Press New chat.");
  else if (trouble && trouble.name !== "AbortError") problem(trouble.message);
  if (said) {  // the gateway has recorded this much as the reply
    turns.push({ role: "assistant", content: said, element });
    if (replaced) replaced.element.remove();
    element.querySelector(".acts").hidden = false;
    for (const button of element.querySelectorAll("button")) button.hidden = true;
    element.querySelector(".note").textContent = "Stopped";
    return;
  }
  element.remove();
  if (replaced) { turns.push(replaced); act(replaced); return; }
  const last = turns.pop();  // not answered, so not said: it goes back into the box
  last.element.remove();
  const before = turns[turns.length - 1];
  if (before && before.id) before.element.querySelector(".again").hidden = false;
  at("say").value = last.content;
  fit();
  at("empty").hidden = turns.length > 0;
  at("say").focus();
}
function act(turn) {
  const [up, down, again] = ["up", "down", "again"].map((name) => turn.element.querySelector("." + name));
  turn.element.querySelector(".acts").hidden = false;
  again.hidden = false;
  up.onclick = () => rate(turn, up, down, "thumb_up");
  down.onclick = () => rate(turn, down, up, "thumb_down");
  again.onclick = () => {
    if (running || turns[turns.length - 1] !== turn) return;
    turns.pop();
    turn.element.querySelector(".acts").hidden = true;
    reply(turn);
  };
}
async function rate(turn, pressed, other, signal) {
  if (pressed.getAttribute("aria-pressed") === "true") return;
  try {
    await call("/v1/feedback", { message_id: turn.id, signal });
    pressed.setAttribute("aria-pressed", "true");
    other.setAttribute("aria-pressed", "false");
    turn.element.querySelector(".note").textContent = "Thank you";
  } catch (error) {
    problem(error.message);
  }
}
if (key) enter(); else at("key").focus();
