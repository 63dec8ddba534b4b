/* The table of clips: sorted and filtered here, with rows only for what is in view. All text is set as text. */

const narrow = matchMedia("(max-width: 720px)");
const percent = (value) => (100 * value).toFixed(0);
const tables = new Map();

/* Ids of clips that are to be labelled and have no label yet: nothing is shown of them. */
let hiddenClips = new Set();

class ClipTable {
  constructor(section) {
    this.section = section;
    this.data = JSON.parse(section.querySelector("script.data").textContent);
    const { data } = this;
    this.classes = data.classes;
    this.said = data.predictors.map((one) => one.probs.map(likeliest));
    this.main = data.main;
    this.of = (role) => this.main.find((p) => data.predictors[p].role === role);
    this.hasTruth = data.truth.some((k) => k >= 0);
    this.hasVoice = data.speaker.some((name) => name);
    this.unread = null;
    this.state = { view: "all", sort: "id", down: false, text: "", voice: "", label: "", truth: "" };
    this.rows = section.querySelector(".rows");
    this.sizer = section.querySelector(".sizer");
    this.count = section.querySelector(".count");
    this.columns = this.makeColumns();
    this.makeViews();
    this.makeTools();
    this.makeHead();
    let waiting = false;
    this.rows.addEventListener("scroll", () => {
      if (waiting) return;
      waiting = true;
      requestAnimationFrame(() => { waiting = false; this.draw(); });
    });
    narrow.addEventListener("change", () => this.layOut());
    new ResizeObserver(() => this.draw()).observe(this.rows);
    this.layOut();
    this.apply();
  }

  /* What a column is called where there is little room: its role, if no other column has that. */
  short(p) {
    const { name, role } = this.data.predictors[p];
    return this.main.filter((q) => this.data.predictors[q].role === role).length > 1 ? name : role === "lalm" ? "LALM" : role;
  }

  /* The column of raw answers is read when it is first needed, since it is large. */
  get answers() {
    if (!this.raw) this.raw = JSON.parse(this.section.querySelector("script.raw").textContent);
    return this.raw;
  }

  makeColumns() {
    const { data } = this;
    const columns = [{ key: "id", title: "clip", width: "minmax(7rem, 1.5fr)", value: (i) => data.id[i] }];
    if (this.hasVoice) columns.push({ key: "voice", title: "voice", width: "minmax(4rem, .8fr)", value: (i) => data.speaker[i] });
    for (const p of this.main) {
      const { name, probs } = data.predictors[p];
      columns.push({
        key: "p" + p, title: name, width: "minmax(6.2rem, 1fr)", down: true,
        value: (i) => (this.said[p][i] < 0 ? null : probs[i][this.said[p][i]]),
      });
    }
    columns.push({ key: "disagreement", title: "disagreement", width: "7rem", down: true, num: true, value: (i) => data.disagreement[i] });
    columns.push({ key: "uncertainty", title: "uncertainty", width: "7rem", down: true, num: true, value: (i) => data.uncertainty[i] });
    if (this.hasTruth) columns.push({ key: "truth", title: "true", width: "5.8rem", place: "true", value: (i) => this.classes[data.truth[i]] || "" });
    return columns;
  }

  makeViews() {
    const student = this.of("student"), lalm = this.of("lalm"), source = this.of("source");
    const last = student ?? this.of("labels") ?? this.main[this.main.length - 1];
    const differ = (p, q) => (i) => this.said[p][i] >= 0 && this.said[q][i] >= 0 && this.said[p][i] !== this.said[q][i];
    const views = [["all", "All", null, "id", false]];
    if (lalm !== undefined && source !== undefined) views.push(["disagree", "Largest disagreement", differ(lalm, source), "disagreement", true]);
    if (this.data.uncertainty.some((v) => v !== null)) views.push(["uncertain", "Highest uncertainty", null, "uncertainty", true]);
    if (student !== undefined && lalm !== undefined) views.push(["against", "Student against LALM", differ(student, lalm), "p" + student, true]);
    if (this.hasTruth) {
      const wrong = (i) => this.data.truth[i] >= 0 && this.said[last][i] >= 0 && this.said[last][i] !== this.data.truth[i];
      views.push(["wrong", "Wrong and sure", wrong, "p" + last, true]);
    }
    views.push(["unread", "Unread answers", (i) => this.hasUnread(i), "id", false]);
    this.views = new Map(views.map(([key, ...rest]) => [key, rest]));
    const place = this.section.querySelector(".views");
    for (const [key, title] of views) {
      const button = element("button", { type: "button", textContent: title, "aria-pressed": key === "all" });
      button.dataset.view = key;
      button.addEventListener("click", () => {
        const [, , sort, down] = this.views.get(key);
        Object.assign(this.state, { view: key, sort, down });
        for (const other of place.children) other.setAttribute("aria-pressed", other === button);
        this.apply();
      });
      place.append(button);
    }
  }

  hasUnread(i) {
    return Object.values(this.answers).some((clips) => clips[i].some(([outcome]) => outcome !== "ok"));
  }

  makeTools() {
    const tools = this.section.querySelector(".tools");
    const add = (title, control, name) => {
      control.addEventListener("input", () => { this.state[name] = control.value; this.apply(); });
      tools.append(element("label", { className: name }, title, control));
      return control;
    };
    const choice = (title, name, options) => {
      const control = element("select");
      for (const [value, text] of options) control.append(element("option", { value, textContent: text }));
      return add(title, control, name);
    };
    const search = add("Search", element("input", { type: "search", placeholder: "clip, voice or class" }), "text");
    search.parentElement.classList.add("search");
    const labels = this.of("student") ?? this.of("labels");
    const any = [["", "any"]];
    if (labels !== undefined) choice(capital(this.short(labels)) + " says", "label", any.concat(this.classes.map((name, k) => [k, name])));
    if (this.hasTruth) choice("True class", "truth", any.concat(this.classes.map((name, k) => [k, name])));
    if (this.hasVoice) choice("Voice", "voice", any.concat([...new Set(this.data.speaker)].sort(compare).map((name) => [name, name || "unknown"])));
    this.sorter = element("select");
    for (const { key, title } of this.columns) this.sorter.append(element("option", { value: key, textContent: title }));
    this.sorter.addEventListener("input", () => this.sortBy(this.sorter.value));
    tools.append(element("label", { className: "sort" }, "Sort by", this.sorter));
  }

  makeHead() {
    const head = this.section.querySelector(".head");
    head.append(element("span", { role: "columnheader", "aria-label": "play" }));
    this.heads = this.columns.map((column) => {
      const button = element("button", { type: "button", textContent: column.title, title: column.title });
      button.addEventListener("click", () => this.sortBy(column.key, true));
      const cell = element("div", { role: "columnheader", className: column.num ? "num" : column.place || "" }, button);
      head.append(cell);
      return cell;
    });
    this.section.querySelector(".table").style.setProperty("--grid", "28px " + this.columns.map((c) => c.width).join(" "));
  }

  sortBy(key, turn = false) {
    const column = this.columns.find((one) => one.key === key);
    this.state.down = turn && this.state.sort === key ? !this.state.down : Boolean(column.down);
    this.state.sort = key;
    this.apply();
  }

  layOut() {
    const cells = this.main.length + 2 + (this.hasTruth ? 1 : 0);
    this.height = narrow.matches ? 50 + 21 * Math.ceil(cells / 2) : 38;
    if (this.shown) { this.sizer.style.height = this.shown.length * this.height + "px"; this.draw(); }
  }

  apply() {
    const { state, data } = this;
    const [, keep] = this.views.get(state.view);
    const words = state.text.toLowerCase().split(/\s+/).filter(Boolean);
    const labels = this.of("student") ?? this.of("labels");
    const found = [];
    for (let i = 0; i < data.id.length; i++) {
      if (hiddenClips.has(data.id[i])) continue;
      if (keep && !keep(i)) continue;
      if (state.voice && data.speaker[i] !== state.voice) continue;
      if (state.label !== "" && this.said[labels][i] !== Number(state.label)) continue;
      if (state.truth !== "" && data.truth[i] !== Number(state.truth)) continue;
      if (words.length) {
        const text = [data.id[i], data.speaker[i], ...this.main.map((p) => this.classes[this.said[p][i]])].join(" ").toLowerCase();
        if (!words.every((word) => text.includes(word))) continue;
      }
      found.push(i);
    }
    const { value } = this.columns.find((one) => one.key === state.sort);
    const keys = new Map(found.map((i) => [i, value(i)]));
    const sign = state.down ? -1 : 1;
    found.sort((a, b) => {
      const x = keys.get(a), y = keys.get(b);
      if (x === null || y === null) return (x === null) - (y === null) || a - b;
      return sign * compare(x, y) || a - b;
    });
    this.shown = found;
    this.sizer.style.height = found.length * this.height + "px";
    this.rows.scrollTop = 0;
    this.sorter.value = state.sort;
    this.heads.forEach((head, c) => {
      if (this.columns[c].key === state.sort) head.setAttribute("aria-sort", state.down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
    const hidden = data.id.filter((id) => hiddenClips.has(id)).length;
    this.count.textContent = `${found.length.toLocaleString("en")} of ${data.id.length.toLocaleString("en")} clips`
      + (hidden ? `; ${hidden} are to be labelled and hidden until then` : "");
    this.section.querySelector(".table").setAttribute("aria-rowcount", found.length);
    this.draw();
  }

  draw() {
    const first = Math.max(0, Math.floor(this.rows.scrollTop / this.height) - 4);
    const last = Math.min(this.shown.length, first + Math.ceil(this.rows.clientHeight / this.height) + 9);
    const made = [];
    for (let n = first; n < last; n++) made.push(this.row(n));
    this.sizer.replaceChildren(...made);
  }

  row(n) {
    const i = this.shown[n], { data } = this;
    const row = element("div", { className: "row", role: "row", "aria-rowindex": n + 1 });
    row.dataset.id = data.id[i];
    row.style.top = n * this.height + "px";
    row.style.height = this.height + "px";
    const button = element("button", { type: "button", className: "play", textContent: "▶", "aria-label": "Play " + data.id[i], disabled: !data.audio[i] });
    button.addEventListener("click", (event) => { event.stopPropagation(); play(data.audio[i], button); });
    const open = element("button", { type: "button", className: "open", textContent: data.id[i], title: data.id[i] });
    row.append(element("div", { role: "cell", className: "play-cell" }, button), element("div", { role: "cell", className: "id" }, open));
    if (this.hasVoice) row.append(element("div", { role: "cell", className: "voice", textContent: data.speaker[i] }));
    const cells = element("div", { className: "cells" });
    for (const p of this.main) cells.append(this.saying(p, i));
    cells.append(level("disagreement", data.disagreement[i], Math.log(2)));
    cells.append(level("uncertainty", data.uncertainty[i], 0.5));
    if (this.hasTruth) {
      const name = data.truth[i] < 0 ? "–" : this.classes[data.truth[i]];
      cells.append(element("div", { role: "cell", className: "true" }, element("span", { className: "label-of-level", textContent: "true " }), name));
    }
    row.append(cells);
    row.addEventListener("click", () => openClip(this, n));
    return row;
  }

  saying(p, i) {
    const { probs } = this.data.predictors[p], k = this.said[p][i];
    const wrong = k >= 0 && this.data.truth[i] >= 0 && k !== this.data.truth[i];
    const cell = element("div", { role: "cell", className: "said" + (wrong ? " wrong" : "") });
    cell.append(element("span", { className: "who", textContent: this.short(p) }));
    cell.append(element("span", { className: "what", textContent: k < 0 ? "–" : this.classes[k] }));
    if (k >= 0) cell.append(element("span", { className: "p", textContent: percent(probs[i][k]) }));
    return cell;
  }
}

function level(title, value, full) {
  const cell = element("div", { role: "cell", className: "num" });
  cell.append(element("span", { className: "label-of-level", textContent: title + " " }));
  if (value === null) { cell.append("–"); return cell; }
  const bar = element("span", { className: "level" });
  bar.style.setProperty("--s", Math.min(1, value / full));
  cell.append(bar, value.toFixed(3));
  return cell;
}

const capital = (text) => text[0].toUpperCase() + text.slice(1);

function likeliest(probs) {
  if (probs === null) return -1;
  let best = 0;
  for (let k = 1; k < probs.length; k++) if (probs[k] > probs[best]) best = k;
  return best;
}

const collator = new Intl.Collator("en", { numeric: true });
function compare(one, other) {
  return typeof one === "string" ? collator.compare(one, other) : one - other;
}

/* One clip: sound, spectrogram, all distributions, and what the LALM answered. */
function openClip(table, n) {
  const dialog = document.getElementById("clip"), { data } = table;
  const i = table.shown[n];
  if (i === undefined) return;
  const bar = element("div", { className: "bar" }, element("h2", { textContent: data.id[i] }));
  for (const [text, title, step] of [["‹", "Previous clip", -1], ["›", "Next clip", 1]]) {
    const button = element("button", { type: "button", textContent: text, "aria-label": title, disabled: table.shown[n + step] === undefined });
    button.addEventListener("click", () => openClip(table, n + step));
    bar.append(button);
  }
  const close = element("button", { type: "button", textContent: "Close" });
  close.addEventListener("click", () => dialog.close());
  bar.append(close);
  const inside = element("div", { className: "inside" });
  if (data.audio[i]) {
    inside.append(element("audio", { controls: true, preload: "none", src: data.audio[i] }));
    const canvas = element("canvas", { role: "img", "aria-label": "Spectrogram, 0 to 8 kHz" });
    const note = element("p", { className: "soft small-note" });
    inside.append(canvas, note);
    samplesOf(data.audio[i])
      .catch(() => null)
      .then((samples) => {
        if (samples) { drawSpectrogram(canvas, samples); note.textContent = "0 to 8 kHz, 60 dB below the loudest"; }
        else { canvas.remove(); note.textContent = "A spectrogram is drawn for embedded audio: mifuse report --embed-audio."; }
      });
  } else {
    inside.append(element("p", { className: "soft", textContent: "The audio of this clip is not where its manifest was." }));
  }
  const facts = [data.speaker[i] && `voice ${data.speaker[i]}`, data.truth[i] >= 0 && `true class ${table.classes[data.truth[i]]}`];
  inside.append(element("p", { className: "small-note", textContent: facts.filter(Boolean).join(", ") }));
  inside.append(element("div", { className: "scroll" }, distributions(table, i)));
  for (const [name, clips] of Object.entries(table.answers)) {
    inside.append(element("h3", { textContent: `Answers of ${name}` }));
    clips[i].forEach(([outcome, text]) => {
      inside.append(element("div", { className: "answer" }, element("span", { className: "soft", textContent: outcome + " " }), element("code", { textContent: text })));
    });
    if (!clips[i].length) inside.append(element("p", { className: "soft", textContent: "none" }));
  }
  dialog.replaceChildren(bar, inside);
  dialog.onkeydown = (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step && event.target.tagName !== "AUDIO") openClip(table, n + step);
  };
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
}

function distributions(table, i) {
  const head = element("tr", {}, element("th", { className: "first", textContent: "%" }));
  for (const name of table.classes) head.append(element("th", { textContent: name }));
  head.append(element("th", { textContent: "uncertainty" }));
  const body = element("tbody");
  table.data.predictors.forEach(({ name, probs, mi }, p) => {
    const row = element("tr", {}, element("th", { textContent: name }));
    table.classes.forEach((_, k) => {
      const value = probs[i] === null ? null : probs[i][k];
      const cell = element("td", { className: "meter" }, value === null ? "–" : percent(value));
      cell.style.setProperty("--s", value ?? 0);
      if (table.said[p][i] === k) cell.style.fontWeight = "650";
      row.append(cell);
    });
    row.append(element("td", { textContent: mi && mi[i] !== null ? mi[i].toFixed(3) : "" }));
    body.append(row);
  });
  return element("table", { className: "numbers" }, element("thead", {}, head), body);
}
