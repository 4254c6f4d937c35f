// What Gradio has no component for: Esc stops the answer; the address names the open chat, so that a reload finds it
// again; on a narrow screen the list of chats does not cover the chat; buttons have names; until the page was told what
// is open nothing can be set or sent, or the answer to that would undo it.
(() => {
  "use strict";

  const PATIENCE = 10_000; // milliseconds until a page that was told nothing may be used all the same
  const SOON = 3_000; // milliseconds within which Esc stops what was sent and does not run yet
  let sent = -Infinity;
  let stopping = false;

  const send = (event) => {
    if (event.isComposing || event.shiftKey || !event.target.closest?.("#question")) return;
    if (event.type === "click" ? !event.target.closest(".submit-button") : event.key !== "Enter") return;
    if (document.body.classList.contains("loaded")) {
      sent = performance.now();
      stopping = false;
    } else {
      event.preventDefault();
      event.stopImmediatePropagation();
    }
  };
  for (const kind of ["keydown", "keypress", "click"]) document.addEventListener(kind, send, true);

  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || event.defaultPrevented || event.isComposing) return;
    stopping = true;
    stop();
  });
  const stop = () => {
    const button = document.querySelector("#question .stop-button");
    if (stopping) button?.click();
    stopping &&= !button && performance.now() - sent < SOON;
  };

  const follow = () => {
    const place = document.querySelector("#chat-id textarea, #chat-id input");
    if (!place) return;
    const address = new URL(window.location.href);
    if ((address.searchParams.get("chat") || "") === place.value) return;
    if (follow.seen === undefined && !place.value) return; // the page has not said yet what is open
    follow.seen = place.value;
    if (place.value) address.searchParams.set("chat", place.value);
    else address.searchParams.delete("chat");
    window.history.replaceState(window.history.state, "", address);
  };

  const fold = () => {
    if (window.innerWidth > 768) return;
    document.querySelector("#chats-sidebar.open .toggle-button")?.click();
  };
  document.addEventListener("change", (event) => {
    if (event.target.closest("#chats")) fold();
  });
  document.addEventListener("click", (event) => {
    if (event.target.closest("#new-chat")) fold();
  });

  // Gradio draws these and names them for nobody who cannot see them, or by what it thinks they are for.
  const name = () => {
    for (const button of document.querySelectorAll('#conversation [aria-label="Feedback"]')) {
      button.ariaLabel = button.title = "Branch";
    }
    for (const [bar, text] of [["chats", "Chats"], ["settings", "Settings"]]) {
      const button = document.querySelector(`#${bar}-sidebar .toggle-button`);
      if (button) button.ariaLabel = button.title = text;
    }
    for (const [kind, text] of [["submit", "Send"], ["stop", "Stop"]]) {
      const button = document.querySelector(`#question .${kind}-button`);
      if (button && !button.ariaLabel) button.ariaLabel = text;
    }
  };

  // What was typed outlives a reload; when its server was gone and is back, Gradio reloads by itself.
  const keep = () => {
    const box = document.querySelector("#question textarea");
    if (!box || !document.body.classList.contains("loaded")) return;
    try {
      if (keep.begun) {
        window.sessionStorage.setItem("typed", box.value);
      } else if (!box.value && window.sessionStorage.getItem("typed")) {
        box.value = window.sessionStorage.getItem("typed");
        box.dispatchEvent(new Event("input", { bubbles: true }));
      }
    } catch {
      // The browser keeps nothing for pages.
    }
    keep.begun = true;
  };

  let begun = false;
  const look = () => {
    follow();
    name();
    stop();
    keep();
    if (document.querySelector("#chats label, #chats-note p") || performance.now() > PATIENCE) {
      document.body.classList.add("loaded");
    }
    if (!begun && document.querySelector("#chats-sidebar .toggle-button")) {
      begun = true;
      fold();
    }
  };
  // Neither a field's value nor Gradio's being ready is an event that could be listened to.
  window.setInterval(look, 200);
})();
