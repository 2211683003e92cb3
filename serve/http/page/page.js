"use strict";
(() => {
  const TOP_K = 5;
  const AT_ONCE = 4; // requests in flight: enough to fill a batch, few enough to leave room for others
  const ASK_AGAIN_MS = 5000;
  // The page may lie below a prefix, with or without a slash at its end.
  const base = location.origin + location.pathname.replace(/\/?$/, "/");
  const at = (path) => new URL(path, base).href;
  const $ = (id) => document.getElementById(id);

  const waiting = [];
  let running = 0;
  let apiKey = "";
  let asking; // the timer of the next look at the server's state
  let limits = {};
  let shown = []; // items, newest first

  function make(tag, properties = {}, ...children) {
    const { className, ...rest } = properties;
    const node = document.createElement(tag);
    if (className) node.className = className;
    for (const [name, value] of Object.entries(rest)) name in node ? (node[name] = value) : node.setAttribute(name, value);
    node.append(...children);
    return node;
  }

  const say = (text) => { $("say").textContent = text; };
  const percent = (score) => (score > 0 && score < 0.001 ? "< 0.1 %" : `${(score * 100).toFixed(1)} %`);
  const ms = (value) => (value < 10 ? value.toFixed(1) : Math.round(value).toString());
  const mebibytes = (bytes) => `${(bytes / 2 ** 20).toFixed(1)} MiB`;

  // What the server says of itself.

  // Asked again only while it is not ready: a page that is left open must not keep a replica awake.
  async function askState() {
    clearTimeout(asking);
    const ready = await readState();
    if (!ready) asking = setTimeout(() => { if (!document.hidden) askState(); }, ASK_AGAIN_MS);
  }

  async function readState() {
    let state;
    try {
      state = await (await fetch(at("page/state"), { cache: "no-store" })).json();
    } catch {
      showState("away", "The server does not answer");
      return false;
    }
    limits = state;
    showModels(state.models.map((model) => model.name));
    const model = state.models.find((one) => one.name === chosenModel()) ?? { name: "no model" };
    const precise = [model.name, model.precision].filter(Boolean).join(" · ");
    showState(model.ready ? "ready" : "waiting", `${model.ready ? "Ready" : "Starting"} · ${precise}`);
    return Boolean(model.ready);
  }

  // There is something to choose only where there are several.
  function showModels(names) {
    $("model-box").hidden = names.length < 2;
    if ([...$("model").options].map((option) => option.value).join() === names.join()) return;
    const before = chosenModel();
    $("model").replaceChildren(...names.map((name) => make("option", { value: name, textContent: name })));
    if (names.includes(before)) $("model").value = before;
  }

  const chosenModel = () => $("model").value;
  $("model").addEventListener("change", () => askState());

  function showState(state, text) {
    const pill = $("state");
    if (pill.dataset.state !== state) pill.dataset.state = state;
    if ($("state-text").textContent !== text) $("state-text").textContent = text;
  }

  document.addEventListener("visibilitychange", () => { if (!document.hidden) askState(); });

  // From a file to a card.

  function add(files) {
    const items = [...files].map((file) => ({ blob: file, name: file.name || "pasted image", address: URL.createObjectURL(file) }));
    if (!items.length) return;
    for (const item of items) {
      item.card = make("li");
      draw(item, { working: true });
    }
    shown = [...items, ...shown];
    $("cards").prepend(...items.map((item) => item.card));
    $("results").hidden = false;
    // On a phone the results begin below the screen.
    if (items[0].card.getBoundingClientRect().top > innerHeight * 0.8) {
      const smooth = !matchMedia("(prefers-reduced-motion: reduce)").matches;
      $("results").scrollIntoView({ block: "start", behavior: smooth ? "smooth" : "auto" });
    }
    say(items.length === 1 ? `Labelling ${items[0].name}` : `Labelling ${items.length} images`);
    waiting.push(...items);
    pump();
  }

  function pump() {
    while (running < AT_ONCE && waiting.length) {
      running += 1;
      classify(waiting.shift()).finally(() => {
        running -= 1;
        pump();
        summarise();
      });
    }
  }

  const modelQuery = () => ($("model").options.length > 1 ? `&model=${encodeURIComponent(chosenModel())}` : "");

  async function classify(item) {
    draw(item, { working: true });
    if (limits.max_request_bytes && item.blob.size > limits.max_request_bytes) {
      return fail(item, `${mebibytes(item.blob.size)}, and this server takes up to ${mebibytes(limits.max_request_bytes)}`, "Too large");
    }
    const headers = { "Content-Type": item.blob.type || "application/octet-stream" };
    if (apiKey) headers.Authorization = `Bearer ${apiKey}`;
    const started = performance.now();
    let response, answer;
    try {
      response = await fetch(at(`v1/classify?top_k=${TOP_K}${modelQuery()}`), { method: "POST", headers, body: item.blob });
      answer = await response.json().catch(() => null);
    } catch {
      askState();
      return fail(item, "The request did not reach the server, or its answer did not reach this page.", "No answer", true);
    }
    item.took = performance.now() - started;
    if (response.status === 401) askKey(item);
    const result = answer?.results?.[0];
    if (response.ok && result?.status === "ok") return succeed(item, result, response.headers.get("Server-Timing"));
    const heading = { 401: "A key is needed", 503: "The server is busy", 504: "Out of time" }[response.status] ?? "Not labelled";
    const message = answer?.error ?? result?.error ?? `The server answered ${response.status} ${response.statusText}`.trim();
    return fail(item, message, heading, response.status === 503 || response.status === 504);
  }

  function succeed(item, result, timing) {
    item.done = true;
    draw(item, { result, timing });
    const best = result.labels[0];
    say(`${item.name}: ${best.label}, ${percent(best.score)}`);
  }

  function fail(item, message, heading, again = false) {
    draw(item, { message, heading, again });
    say(`${item.name}: ${heading}. ${message}`);
  }

  // Drawing. Text of files and of the server is only ever text.

  function draw(item, what) {
    const { card } = item;
    card.className = what.working ? "card working" : "card";
    const picture = card.querySelector(".picture") ?? make("div", { className: "picture" }, pictureOf(item));
    const head = make("header", {}, make("h3", { textContent: item.name, title: item.name }));
    const said = make("div", { className: "said" }, head);
    if (what.result) {
      head.append(make("span", { className: "size", textContent: `${what.result.width} × ${what.result.height}` }));
      said.append(labelsOf(what.result), make("p", { className: "times", textContent: timesOf(item, what.result, what.timing) }));
    } else if (what.message) {
      said.append(make("p", { className: "wrong" }, make("b", { textContent: what.heading }), what.message));
      if (what.again) said.append(make("button", { type: "button", className: "button plain", textContent: "Try again", onclick: () => retry([item]) }));
    }
    card.replaceChildren(picture, said);
    card.setAttribute("aria-busy", String(Boolean(what.working)));
  }

  function pictureOf(item) {
    const image = make("img", { alt: "", src: item.address, decoding: "async", loading: "lazy" });
    image.onerror = () => image.remove(); // a format that the browser cannot show
    return image;
  }

  function labelsOf(result) {
    const rows = result.labels.map(({ label, score }) => {
      const bar = make("i");
      // One frame later, so that the bar grows from nothing where motion is welcome.
      requestAnimationFrame(() => requestAnimationFrame(() => { bar.style.transform = `translateX(${(score - 1) * 100}%)`; }));
      return make(
        "li", {},
        make("span", { className: "name", textContent: label }),
        make("span", { className: "score", textContent: percent(score) }),
        make("span", { className: "track", "aria-hidden": "true" }, bar),
      );
    });
    return make("ol", { className: "labels", "aria-label": "Best labels" }, ...rows);
  }

  // Server-Timing, "decode;dur=2.1, queue;dur=0.3, infer;dur=5.2", where the server sends it.
  function timesOf(item, result, timing) {
    const stages = [...(timing ?? "").matchAll(/([\w-]+)\s*;[^,]*?dur=([\d.]+)/g)].map(([, name, dur]) => `${name} ${ms(Number(dur))} ms`);
    const verdict = { true: ["accepted"], false: ["not accepted"] }[result.accepted] ?? []; // of a calibrated model
    return [...verdict, `${ms(item.took)} ms`, ...(stages.length ? [stages.join(", ")] : [])].join(" · ");
  }

  function summarise() {
    const times = shown.filter((item) => item.done).map((item) => item.took).sort((a, b) => a - b);
    const count = shown.length === 1 ? "1 image" : `${shown.length} images`;
    const median = times.length > 1 ? `, median ${ms((times[(times.length - 1) >> 1] + times[times.length >> 1]) / 2)} ms` : "";
    $("results-sum").textContent = count + median;
  }

  function retry(items) {
    for (const item of items) {
      item.locked = false;
      draw(item, { working: true });
    }
    waiting.push(...items);
    pump();
  }

  $("clear").addEventListener("click", () => {
    for (const item of shown) URL.revokeObjectURL(item.address);
    shown = [];
    waiting.length = 0;
    $("cards").replaceChildren();
    $("results").hidden = true;
    say("Results cleared");
    $("files").focus();
  });

  // A key, if the server wants one.

  function askKey(item) {
    item.locked = true;
    if (!$("key-form").hidden) return;
    $("key-form").hidden = false;
    $("key").focus();
  }

  $("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    apiKey = $("key").value.trim();
    $("key-form").hidden = true;
    $("key").value = "";
    retry(shown.filter((item) => item.locked));
  });

  // Ways in: choose, drop, paste, a sample.

  $("files").addEventListener("change", (event) => {
    add(event.target.files);
    event.target.value = ""; // so that the same file can be chosen again
  });

  let depth = 0; // dragenter and dragleave come for every element that is crossed
  const dragged = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  addEventListener("dragenter", (event) => { if (dragged(event)) document.body.classList.toggle("dragging", ++depth > 0); });
  addEventListener("dragleave", (event) => { if (dragged(event)) document.body.classList.toggle("dragging", --depth > 0); });
  addEventListener("dragover", (event) => { if (dragged(event)) event.preventDefault(); });
  addEventListener("drop", (event) => {
    if (!dragged(event)) return;
    event.preventDefault();
    depth = 0;
    document.body.classList.remove("dragging");
    const { items, files } = event.dataTransfer;
    const entries = [...items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
    if (!entries.some((entry) => entry.isDirectory)) return add(files);
    Promise.all(entries.map(filesBelow)).then((found) => add(found.flat()), () => say("The folder could not be read"));
  });

  // Of a folder, the images in it and below, by their names.
  async function filesBelow(entry) {
    if (entry.isFile) return [await new Promise((done, failed) => entry.file(done, failed))];
    const reader = entry.createReader();
    const entries = [];
    let some;
    do {
      some = await new Promise((done, failed) => reader.readEntries(done, failed)); // 100 at most
      entries.push(...some);
    } while (some.length);
    entries.sort((a, b) => a.name.localeCompare(b.name));
    const found = (await Promise.all(entries.map(filesBelow))).flat();
    return found.filter((file) => file.type.startsWith("image/"));
  }

  addEventListener("paste", (event) => {
    if (event.target === $("key")) return;
    const files = event.clipboardData?.files ?? [];
    if (files.length) add(files);
    else say("The clipboard holds no image");
  });

  async function chooseSample(name, address) {
    try {
      const response = await fetch(address);
      if (!response.ok) throw new Error(response.statusText);
      const blob = await response.blob();
      add([new File([blob], name, { type: blob.type })]);
    } catch {
      say("The sample could not be had from the server");
      askState();
    }
  }

  for (const button of document.querySelectorAll("[data-sample]")) {
    const name = button.dataset.sample;
    const address = at(`page/samples/${name}`);
    button.firstElementChild.src = address;
    button.addEventListener("click", () => chooseSample(name, address));
  }
  $("samples").hidden = false;

  for (const link of document.querySelectorAll("a[data-to]")) link.href = at(link.dataset.to);
  $("curl").textContent = `curl --data-binary @cat.jpg -H 'Content-Type: image/jpeg' '${at(`v1/classify?top_k=${TOP_K}`)}'`;
  askState();
})();
