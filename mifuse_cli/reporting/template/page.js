/* Theme, choice of the run, and links to the sections that it has. */

const themes = ["auto", "light", "dark"];
function setTheme(name) {
  const root = document.documentElement;
  if (name === "auto") delete root.dataset.theme;
  else root.dataset.theme = name;
  document.getElementById("theme").textContent = "Theme: " + name;
}
function keptTheme() {
  try { return localStorage.getItem("mifuse-theme"); } catch { return null; }
}
let theme = themes.includes(keptTheme()) ? keptTheme() : "auto";
setTheme(theme);
document.getElementById("theme").addEventListener("click", () => {
  theme = themes[(themes.indexOf(theme) + 1) % themes.length];
  setTheme(theme);
  try { localStorage.setItem("mifuse-theme", theme); } catch { /* not kept then */ }
});

const task = document.getElementById("task");
const runs = [...document.querySelectorAll(".run")];
if (task) {
  const read = JSON.parse(task.textContent);
  hiddenClips = new Set(read.clips.map((clip) => clip.utt_id));
  new Labelling(document.getElementById("cards"), read);
}

function showRun(number) {
  for (const run of runs) run.hidden = run.dataset.run !== String(number);
  const shown = runs[number];
  const section = shown && shown.querySelector("section.clips");
  if (section && !tables.has(section)) tables.set(section, new ClipTable(section));
  const sections = [...document.querySelectorAll("main > section"), ...(shown ? shown.querySelectorAll("section") : [])];
  const links = sections.map((one) => element("a", { href: "#" + one.id, textContent: one.dataset.title }));
  document.getElementById("nav").replaceChildren(...links);
}

const chooser = document.getElementById("run");
if (chooser) chooser.addEventListener("input", () => showRun(Number(chooser.value)));
showRun(chooser ? Number(chooser.value) : 0);
