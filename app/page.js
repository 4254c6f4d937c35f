// What Gradio has no component for: Esc stops the answer; the address names the open chat, so that a reload finds it
// again; on a narrow screen the list of chats does not cover the chat; Send and Stop have names.
(() => {
  "use strict";

  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || event.defaultPrevented || event.isComposing) return;
    document.querySelector("#question .stop-button")?.click();
  });

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

  // Gradio draws these two and names them for nobody who cannot see them.
  const name = () => {
    for (const [kind, text] of [["submit", "Send"], ["stop", "Stop"]]) {
      const button = document.querySelector(`#question .${kind}-button`);
      if (button && !button.ariaLabel) button.ariaLabel = text;
    }
  };

  let begun = false;
  const look = () => {
    follow();
    name();
    if (!begun && document.querySelector("#chats-sidebar .toggle-button")) {
      begun = true;
      fold();
    }
  };
  // Neither a field's value nor Gradio's being ready is an event that could be listened to.
  window.setInterval(look, 200);
})();
