/* Labelling by ear: one clip at a time, by mouse or keys, kept in this browser, handed out as gold.csv. */

class Labelling {
  constructor(place, task) {
    Object.assign(this, { place, task });
    this.work = this.kept() || { labels: {}, skipped: [], history: [] };
    document.addEventListener("keydown", (event) => this.pressed(event));
    this.draw();
  }

  kept() {
    try {
      const found = JSON.parse(localStorage.getItem(this.task.key));
      return found && typeof found.labels === "object" && Array.isArray(found.history) && Array.isArray(found.skipped) ? found : null;
    } catch { return null; }
  }

  keep() {
    try { localStorage.setItem(this.task.key, JSON.stringify(this.work)); this.lost = false; }
    catch { this.lost = true; }
  }

  get current() {
    const { labels, skipped } = this.work;
    return this.task.clips.find((clip) => !Object.hasOwn(labels, clip.utt_id) && !skipped.includes(clip.utt_id)) || null;
  }

  label(k) {
    const clip = this.current, name = this.task.classes[k];
    if (!clip || name === undefined) return;
    this.work.labels[clip.utt_id] = name;
    this.next(clip.utt_id);
  }

  skip() {
    const clip = this.current;
    if (!clip) return;
    this.work.skipped.push(clip.utt_id);
    this.next(clip.utt_id);
  }

  next(id) {
    this.work.history.push(id);
    this.keep();
    this.draw(true);
  }

  undo() {
    const id = this.work.history.pop();
    if (id === undefined) return;
    delete this.work.labels[id];
    this.work.skipped = this.work.skipped.filter((one) => one !== id);
    this.keep();
    this.draw();
  }

  again() {
    this.work.skipped = [];
    this.keep();
    this.draw();
  }

  pressed(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || document.getElementById("clip").open) return;
    if (event.target.matches("input, select, textarea")) return;
    const key = event.key.toLowerCase();
    if (key >= "1" && key <= "9") this.label(Number(key) - 1);
    else if (key === "s") this.skip();
    else if (key === "u") this.undo();
    else if (key === "p" || (key === " " && !event.target.matches("button, summary, a, audio, .rows"))) this.sound();
    else return;
    event.preventDefault();
  }

  sound() {
    const audio = this.place.querySelector("audio");
    if (!audio) return;
    if (audio.paused) { player.pause(); audio.currentTime = Number(/#t=([\d.]+)/.exec(audio.src)?.[1] ?? 0); audio.play().catch(() => this.complain()); } else audio.pause();
  }

  complain() {
    const note = this.place.querySelector(".note");
    if (note) note.textContent = "The audio of this clip cannot be played. Make the page again with --embed-audio, or skip the clip.";
  }

  draw(go = false) {
    const { task, work } = this, clip = this.current;
    const done = Object.keys(work.labels).length;
    const card = element("div", { className: "card" });
    card.append(element("div", { className: "card-head" },
      element("b", { textContent: clip ? `Clip ${task.clips.indexOf(clip) + 1} of ${task.clips.length}` : work.skipped.length ? "No clip is left but those you skipped" : "All clips are labelled" }),
      element("span", { className: "soft", textContent: `${done} labelled, ${work.skipped.length} skipped` })));
    const progress = element("div", { className: "progress" });
    progress.style.setProperty("--s", done / task.clips.length);
    card.append(progress);
    if (clip) {
      if (clip.audio) {
        const audio = element("audio", { controls: true, preload: "auto", src: clip.audio });
        audio.addEventListener("error", () => this.complain());
        card.append(audio);
      }
      card.append(element("p", { className: "note soft small-note", textContent: clip.audio ? "" : "The audio of this clip is not where its manifest was." }));
      const choices = element("div", { className: "choices" });
      task.classes.forEach((name, k) => {
        const button = element("button", { type: "button" }, k < 9 ? element("kbd", { textContent: k + 1 }) : null, " " + name);
        button.addEventListener("click", () => this.label(k));
        choices.append(button);
      });
      card.append(choices);
    }
    const after = element("div", { className: "after" });
    const add = (text, key, act, usable, main = false) => {
      const button = element("button", { type: "button", disabled: !usable, className: main ? "main" : "" }, key ? element("kbd", { textContent: key }) : null, " " + text);
      button.addEventListener("click", act);
      after.append(button);
      return button;
    };
    if (clip && clip.audio) add("play", "p", () => this.sound(), true);
    if (clip) add("skip", "s", () => this.skip(), true);
    else if (work.skipped.length) add(`go through the ${work.skipped.length} skipped`, "", () => this.again(), true);
    add("undo", "u", () => this.undo(), work.history.length > 0);
    add("Download gold.csv", "", () => this.download(), done > 0, true).id = "download";
    card.append(after);
    if (this.lost) card.append(element("p", { className: "stale small-note", textContent: "This browser keeps nothing: download before you close the page." }));
    if (done) {
      const note = "Save it beside the file of mifuse pick, then: mifuse fuse --gold gold.csv ..., or mifuse evaluate --manifest gold.csv ...";
      card.append(element("p", { className: "soft small-note", textContent: note }));
    }
    this.place.replaceChildren(card);
    hiddenClips = new Set(task.clips.map((one) => one.utt_id).filter((id) => !Object.hasOwn(work.labels, id)));
    for (const table of tables.values()) table.apply();
    if (go && clip && clip.audio) card.querySelector("audio").play().catch(() => {});
  }

  csv() {
    const quoted = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
    const rows = [["file", "utt_id", "speaker", "emotion", "inclusion"]];
    for (const clip of this.task.clips) {
      if (Object.hasOwn(this.work.labels, clip.utt_id)) {
        rows.push([clip.file, clip.utt_id, clip.speaker, this.work.labels[clip.utt_id], clip.inclusion]);
      }
    }
    return rows.map((row) => row.map(quoted).join(",") + "\n").join("");
  }

  download() {
    const address = URL.createObjectURL(new Blob([this.csv()], { type: "text/csv" }));
    const link = element("a", { href: address, download: "gold.csv" });
    link.click();
    setTimeout(() => URL.revokeObjectURL(address), 1000);
  }
}
