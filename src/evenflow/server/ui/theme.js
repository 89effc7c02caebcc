/**
 * Dark, light, or as the system has it. A classic script: it runs before the first paint.
 */
(() => {
  const NAME = "evenflow-theme";
  const ORDER = ["system", "dark", "light"];
  const root = document.documentElement;

  const apply = (theme) => {
    root.dataset.theme = theme;
    window.dispatchEvent(new Event("themechange"));
  };

  apply(localStorage.getItem(NAME) ?? "system");

  document.addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    const label = () => {
      button.title = `Theme: ${root.dataset.theme}`;
      button.setAttribute("aria-label", button.title);
    };
    button.addEventListener("click", () => {
      const next = ORDER[(ORDER.indexOf(root.dataset.theme) + 1) % ORDER.length];
      localStorage.setItem(NAME, next);
      apply(next);
      label();
    });
    label();
  });
})();
