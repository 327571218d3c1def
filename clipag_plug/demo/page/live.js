// The line to the program: messages as they come, and a new line whenever the old one breaks.

import { $, shared } from "./dom.js";

const FIRST_WAIT = 500;  // ms; doubled until LONGEST_WAIT
const LONGEST_WAIT = 5000;

export function listen(onMessage, onAgain) {
  let wait = FIRST_WAIT;
  let before = false;
  const connect = () => {
    const line = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/api/live`);
    let full = false;
    line.onmessage = (event) => {
      const message = JSON.parse(event.data);
      if (message.kind === "full") {
        full = true;
        return lost(`${message.most} pages are open already; close one`);
      }
      if (message.kind === "start") {
        wait = FIRST_WAIT;
        shared.connected = true;
        if (before) onAgain();
        before = true;
      }
      onMessage(message);
    };
    line.onclose = () => {
      shared.connected = false;
      if (!full) lost("not connected; trying again");
      setTimeout(connect, wait);
      wait = Math.min(2 * wait, LONGEST_WAIT);
    };
  };
  connect();
}

function lost(words) {
  $("status").textContent = words;
  $("status").className = "lost";
}
