// Before the first paint: the theme that was chosen here, if one was.
(() => {
  let chosen = null;
  try { chosen = localStorage.getItem("unmask-theme"); } catch { /* storage may be forbidden */ }
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
})();
