// What the server is asked, and what it answers. Addresses are relative, so the page may live under any path.

export class ServerError extends Error {
  constructor(message, status = 0, parameter = null) {
    super(message);
    this.status = status;
    this.parameter = parameter;
  }
}

function headers(key) {
  return key ? {Authorization: `Bearer ${key}`} : {};
}

async function reach(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server cannot be reached. Is it still running?");
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  let message = `The server answered ${response.status} ${response.statusText}`.trim() + ".";
  let parameter = null;
  try {
    const body = await response.json();
    if (typeof body.error?.message === "string") {
      message = body.error.message;
      parameter = body.error.param ?? null;
    } else if (typeof body.detail === "string") {
      message = body.detail;
    }
  } catch { /* no JSON: what is known is the status */ }
  const wait = response.headers.get("Retry-After");
  if (response.status === 429 && wait) message += ` Try again in ${wait} s.`;
  return new ServerError(message, response.status, parameter);
}

export async function getList(path, key) {
  const response = await reach(path, {headers: headers(key)});
  return (await response.json()).data;
}

// The events of one run, as they arrive.
export async function* unmask(body, key, signal) {
  const response = await reach("v1/unmask", {
    method: "POST",
    headers: {"Content-Type": "application/json", Accept: "text/event-stream", ...headers(key)},
    body: JSON.stringify(body),
    signal,
  });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "", ended = false;
  try {
    for (;;) {
      const {value, done} = await reader.read();
      if (done) break;
      const parts = (rest + value).split(/\r?\n\r?\n/);
      rest = parts.pop();
      for (const part of parts) {
        const event = parse(part);
        if (event === null) continue;
        ended ||= event.type === "end" || event.type === "error";
        yield event;
      }
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The connection to the server was lost in the middle of a run.");
  }
  if (!ended) throw new ServerError("The server ended the connection in the middle of a run.");
}

function parse(part) {
  const lines = part.split(/\r?\n/).filter(line => line.startsWith("data:"));
  const data = lines.map(line => line.slice(5).trimStart()).join("\n");
  return data === "" || data === "[DONE]" ? null : JSON.parse(data);
}
