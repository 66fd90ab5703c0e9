// Light or dark: as the system is, until one of them is chosen.

const $ = id => document.getElementById(id);
const dark = matchMedia("(prefers-color-scheme: dark)");
const root = document.documentElement.dataset;

export const theme = () => root.theme ?? (dark.matches ? "dark" : "light");

function show() {
  const chosen = root.theme ?? "system";
  $("theme-name").textContent = chosen[0].toUpperCase() + chosen.slice(1);
  $("theme").setAttribute("aria-label", `Theme: ${chosen === "system" ? "as the system" : chosen}`);
}

function choose() {
  const order = dark.matches ? [undefined, "light", "dark"] : [undefined, "dark", "light"];
  const next = order[(order.indexOf(root.theme) + 1) % 3];
  if (next) root.theme = next;
  else delete root.theme;
  try {
    if (next) localStorage.setItem("unmask-theme", next);
    else localStorage.removeItem("unmask-theme");
  } catch { /* storage may be forbidden: the choice then lasts as long as the page */ }
}

// Calls a function whenever the theme has changed.
export function onTheme(changed) {
  $("theme").addEventListener("click", () => { choose(); show(); changed(); });
  dark.addEventListener("change", changed);
  show();
}
