-- Bodies for wrk, read from the folder that gateway_bodies.py wrote; one line of JSON at the end.
-- Arguments: folder, kind of body, number of the first.

local function read(path)
  local file = assert(io.open(path, "rb"))
  local text = file:read("*a")
  file:close()
  return text
end

local opening, tail, pool, starts, length, number = "", "", "", {}, 0, 0

function init(args)
  local folder = args[1] .. "/" .. args[2]
  opening, tail, pool = read(folder .. ".head"), read(folder .. ".tail"), read(args[1] .. "/pool")
  for start in read(folder .. ".starts"):gmatch("%d+") do
    starts[#starts + 1] = tonumber(start)
  end
  length = table.remove(starts, 1)
  number = tonumber(args[3])
  local n_bytes = #opening + 13 + length + #tail
  opening = "POST " .. wrk.path .. " HTTP/1.1\r\nHost: " .. wrk.host .. ":" .. wrk.port ..
    "\r\nContent-Type: application/json\r\nContent-Length: " .. n_bytes .. "\r\n\r\n" .. opening
end

function request()
  number = number + 1
  local start = starts[number % #starts + 1]
  return opening .. string.format("%012d ", number) .. pool:sub(start + 1, start + length) .. tail
end

function done(summary)
  local errors = summary.errors
  print(string.format('{"n_answers": %d, "seconds": %.6f, "n_status_errors": %d, "n_socket_errors": %d}',
    summary.requests, summary.duration / 1e6, errors.status,
    errors.connect + errors.read + errors.write + errors.timeout))
end
