// Keys for what the page offers, and a word when the server can't be reached. Without this file the page works by mouse.
(() => {
  const arrows = { ArrowLeft: "a", ArrowRight: "b" };
  let busy = false;
  const trouble = (text) => {
    const box = document.getElementById("trouble");
    box.textContent = text;
    box.hidden = !text;
  };

  document.addEventListener("keydown", (event) => {
    const typing = event.target.matches("textarea, input:not([type=radio])");
    if (event.key === "Escape") document.activeElement.blur();
    if (typing || busy || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    if (event.key in arrows && event.target.matches("[type=radio]")) return;
    const key = arrows[event.key] ?? event.key.toLowerCase();
    const group = /^[1-9]$/.test(key) && document.querySelector(`[data-cycle="${key}"]`);
    if (group) {
      const radios = [...group.querySelectorAll("input")];
      radios[(radios.findIndex((radio) => radio.checked) + 1) % radios.length].checked = true;
      return;
    }
    const target = /^[a-z]$/.test(key) && document.querySelector(`[data-key="${key}"], [data-focus="${key}"]`);
    if (!target) return;
    event.preventDefault();
    if (target.dataset.focus) target.focus();
    else target.click();
  });

  document.addEventListener("htmx:beforeRequest", (event) => {
    if (busy) event.preventDefault();
    busy = true;
  });
  document.addEventListener("htmx:afterRequest", () => { busy = false; });
  for (const name of ["htmx:sendError", "htmx:timeout"])
    document.addEventListener(name, () => {
      trouble("The server can't be reached, so your last answer was not saved. Give it again when the server is back.");
    });
  document.addEventListener("htmx:afterSwap", () => {
    trouble("");
    (document.querySelector("[autofocus]") ?? document.getElementById("main")).focus({ preventScroll: true });
  });
})();
