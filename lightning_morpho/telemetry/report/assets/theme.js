"use strict";
// Colours: as the system has them, unless the reader chose; the choice stays in this browser.
(() => {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const buttons = document.querySelectorAll("[data-theme-choice]");
  const stored = () => { try { return localStorage.getItem("morpho-theme"); } catch { return null; } };
  const store = (choice) => { try { localStorage.setItem("morpho-theme", choice); } catch { /* not allowed here */ } };
  let choice = ["light", "dark"].includes(stored()) ? stored() : "auto";

  function show() {
    const scheme = choice === "auto" ? (dark.matches ? "dark" : "light") : choice;
    document.documentElement.dataset.theme = scheme;
    for (const button of buttons) button.setAttribute("aria-pressed", String(button.dataset.themeChoice === choice));
  }
  for (const button of buttons) {
    button.addEventListener("click", () => { choice = button.dataset.themeChoice; store(choice); show(); });
  }
  dark.addEventListener("change", show);
  show();
})();
